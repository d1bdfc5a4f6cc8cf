"""Checks the values that the user sets for knobs, which are the keywords of a workload's factory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from memprof.documents.workload_spec import KnobValue
from memprof.errors import UsageError, did_you_mean

_ARTICLES = {int: "an int", float: "a float", bool: "true or false", str: "a string"}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def fill_knobs(owner: str, defaults: Mapping[str, Any], given: Mapping[str, KnobValue]) -> dict[str, Any]:
    """Return all knobs: the given values, and the defaults of the others.

    Args:
        owner: The name of the workload, for error messages.
        defaults: All knobs with their defaults.
        given: The values that the user set. Each must have the type of the default.

    Returns:
        All knobs with their values.

    Raises:
        UsageError: A knob is unknown, or its value has another type.
    """
    for name in given:
        if name not in defaults:
            raise UsageError(f"{owner} has no knob {name!r}{did_you_mean(name, list(defaults))}")
    filled = {**defaults, **given}
    return {
        name: coerce(owner, name, value, type(defaults[name])) if name in given else value
        for name, value in filled.items()
    }


def coerce(owner: str, name: str, value: KnobValue, kind: type) -> KnobValue:
    """Return a value as the type of its knob. If that type is not int, float, bool or str, the value is not checked.

    An int is accepted as a float, and any value is accepted as a string.

    Args:
        owner: The name of the workload, for the error message.
        name: The name of the knob.
        value: The value.
        kind: The type of the knob.

    Returns:
        The value.

    Raises:
        UsageError: The value has another type.
    """
    if kind not in _ARTICLES or type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is str:
        return str(value).lower() if isinstance(value, bool) else str(value)
    raise UsageError(f"the knob {name} of {owner} is {_ARTICLES[kind]}, not {value!r}")


def check_ranges(owner: str, knobs: Mapping[str, Any]) -> None:
    """Refuse counts and widths below 1, and a dropout probability outside its range.

    Raises:
        UsageError: An int knob is 0 or negative, or `dropout` is not at least 0 and below 1.
    """
    dropout = knobs.get("dropout", 0.0)
    if not 0 <= dropout < 1:
        raise UsageError(f"the knob dropout of {owner} must be from 0 up to 1, not {dropout}")
    for name, value in knobs.items():
        if type(value) is int and value < 1:
            raise UsageError(f"the knob {name} of {owner} must be at least 1, not {value}")


def check_length(owner: str, name: str, value: Any, most: int | None) -> int:
    """Check the length of a sample.

    Args:
        owner: The name of the workload, for error messages.
        name: The name of the knob.
        value: The length.
        most: The number of positions of the model, or None if there is no limit.

    Returns:
        The length.

    Raises:
        UsageError: It is not an int of at least 1, or it is more than the model has positions for.
    """
    coerce(owner, name, value, int)
    check_ranges(owner, {name: value})
    if most is not None and name == "seq_len" and value > most:
        raise UsageError(
            f"seq_len={value} is more than the {most} positions of {owner}; set max_position_embeddings too"
        )
    return int(value)


def bind_knobs(owner: str, factory: Callable[..., Any], given: Mapping[str, KnobValue]) -> dict[str, Any]:
    """Return all keywords of a user's factory: the given values, and the defaults of the others.

    Args:
        owner: The name of the workload, for error messages.
        factory: The function or class.
        given: The values that the user set.

    Returns:
        All keywords with their values.

    Raises:
        UsageError: A knob is unknown, has another type than its annotation or default, or has no value; or the factory
            takes `batch_size`, which is not a knob of the model.
    """
    parameters = _parameters(owner, factory)
    if "batch_size" in parameters:
        raise UsageError(
            f"{owner} takes batch_size, which is not a knob: drop it there; the batch function is given it"
        )
    known = [name for name, parameter in parameters.items() if parameter.kind in _NAMED]
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in given:
        if name not in known and not open_ended:
            raise UsageError(f"{owner} has no knob {name!r}{did_you_mean(name, known) if known else ''}")
    kinds = _kinds(factory, parameters)
    filled = {name: parameters[name].default for name in known} | dict(given)
    missing = [name for name, value in filled.items() if value is inspect.Parameter.empty]
    if missing:
        raise UsageError(f"{owner} needs a value for {missing[0]}: {_how_to_give(missing[0], kinds)}")
    return {
        name: coerce(owner, name, value, kinds.get(name, object)) if name in given else value
        for name, value in filled.items()
    }


def _how_to_give(name: str, kinds: Mapping[str, type]) -> str:
    """Return what to do about a keyword without a default: `--set` gives numbers, words and lists, but no objects."""
    function = f"write a function that builds the model, with its {name}, and name that"
    if kinds.get(name, object) in (int, float, bool, str, list, tuple, dict):
        return f"add --set {name}=VALUE"
    unannotated = kinds.get(name) is type
    return f"add --set {name}=VALUE, or {function}" if unannotated else function


def _parameters(owner: str, factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise UsageError(f"the keywords of {owner} cannot be read ({error}); wrap it in a function") from error
    for parameter in parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise UsageError(f"{owner} takes {parameter.name} by position only; make it a keyword")
    return parameters


def _kinds(factory: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, type]:
    """Return the type of each keyword, from its annotation or its default, if that is a plain type."""
    target = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
    try:
        hints = get_type_hints(target)
    except Exception:  # an annotation that cannot be evaluated is no reason to refuse the model
        hints = {}
    kinds = {name: hints.get(name, type(p.default)) for name, p in parameters.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type)}
