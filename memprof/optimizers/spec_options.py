"""Checks the options of an optimizer spec against the constructor's signature: names, types of values, dtypes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.errors import UsageError, did_you_mean

DEFAULT_LR = 1e-3
_NAMED = ("named_parameters", "named_params")


def constructor_arguments(factory: Callable[..., Any], spec: OptimizerSpec) -> dict[str, object]:
    """Return the keyword arguments for the constructor that a spec's options stand for.

    Lists become tuples. A string becomes a `torch.dtype` if the argument's annotation or default is a dtype
    (`momentum_dtype=bfloat16`). If the constructor requires `lr` and the spec has none, it is 1e-3.

    Args:
        factory: The constructor.
        spec: The optimizer spec.

    Returns:
        The keyword arguments, without the parameters.

    Raises:
        UsageError: An option is unknown, would replace the parameters, has a value of the wrong type, or a required
            option is missing.
    """
    known = _signature(factory)
    if known is None:  # a constructor written in C may have no signature; it checks the options itself
        return {name: _to_tuple(value) for name, value in spec.options.items()}
    first = next(iter(known), "params")
    named = {name: item for name, item in known.items() if name != first and item.kind not in _VARIADIC}
    open_ended = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in known.values())
    for name in spec.options:
        if name in (first, "params"):
            raise UsageError(f"optimizer {spec.text!r}: {name!r} comes from the model; leave it out")
        if name not in named and not open_ended:
            hint = did_you_mean(name, list(named))
            raise UsageError(f"optimizer {spec.name!r} has no option {name!r}{hint}")
    arguments = {name: _argument(value, named.get(name), name, spec) for name, value in spec.options.items()}
    return {**_required(named, spec), **arguments}


def takes_names(factory: Callable[..., Any]) -> bool:
    """Return whether the constructor's first argument takes (name, parameter) pairs."""
    return next(iter(_signature(factory) or {}), "") in _NAMED


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _signature(factory: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    try:
        return dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return None


def _required(named: dict[str, inspect.Parameter], spec: OptimizerSpec) -> dict[str, object]:
    """Return the default `lr` if the constructor requires one; raise a UsageError if another option is missing."""
    missing = [name for name, item in named.items() if item.default is item.empty and name not in spec.options]
    others = [name for name in missing if name != "lr"]
    if others:
        example = ",".join(f"{name}=..." for name in others)
        raise UsageError(f"optimizer {spec.text!r} requires {', '.join(others)}; write {spec.text},{example}")
    return {"lr": DEFAULT_LR} if missing else {}


def _argument(value: Any, item: inspect.Parameter | None, name: str, spec: OptimizerSpec) -> object:
    if item is None:
        return _to_tuple(value)
    annotation = _annotation(item)
    where = f"optimizer {spec.text!r}: option {name!r}"
    if isinstance(value, str) and _means_dtype(annotation, item.default):
        return _to_dtype(value, annotation, where)
    _check_kind(value, annotation, item.default, where)
    return _to_tuple(value)


def _annotation(item: inspect.Parameter) -> str:
    if item.annotation is item.empty:
        return ""
    return item.annotation if isinstance(item.annotation, str) else inspect.formatannotation(item.annotation)


def _means_dtype(annotation: str, default: object) -> bool:
    return "dtype" in annotation or type(default).__name__ == "dtype"


def _to_dtype(value: str, annotation: str, where: str) -> object:
    """Return the dtype of that name. Other strings are returned unchanged if the annotation allows strings."""
    import torch

    found = getattr(torch, value.removeprefix("torch."), None)
    if isinstance(found, torch.dtype):
        return found
    if "str" in annotation:
        return value
    common = ["float32", "bfloat16", "float16", "float64", "int8"]
    raise UsageError(f"{where} is a dtype, not {value!r}{did_you_mean(value, common)}")


def _check_kind(value: object, annotation: str, default: object, where: str) -> None:
    """Refuse a string for a number or a flag, because `nesterov=no` would count as true."""
    plain = annotation.replace("Optional", "").strip("[]") if "Optional" in annotation else annotation
    flag = plain in ("bool", "bool | None") or (not annotation and isinstance(default, bool))
    if flag and not (value is None or isinstance(value, bool)):
        raise UsageError(f"{where} is true or false, not {value!r}")
    number = isinstance(default, int | float) and not isinstance(default, bool) and "str" not in annotation
    if number and isinstance(value, str | bool | list):
        raise UsageError(f"{where} is a number, not {value!r}")
    if isinstance(default, tuple) and not isinstance(value, list):
        example = ",".join(map(str, default)).lower()
        raise UsageError(f"{where} is a tuple such as ({example}), not {value!r}")


def _to_tuple(value: Any) -> Any:
    return tuple(_to_tuple(item) for item in value) if isinstance(value, list) else value
