"""Reads Hugging Face configurations from a file, a folder or the hub, and sets knobs in them. It reads no weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memprof.documents.workload_spec import KnobValue
from memprof.errors import UsageError, did_you_mean
from memprof.user_code import describe, kind
from memprof.workloads.knobs import coerce

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_LAYERS = ("n_layer", "n_layers", "num_layers", "encoder_layers")  # used if there is no num_hidden_layers
_DECODER_LAYERS = ("decoder_layers", "num_decoder_layers")
_SHIFTED = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "longformer",
    "data2vec-text",
    "ibert",
    "mpnet",
    "esm",
)  # in these models the positions begin after pad_token_id
_DTYPE = ("dtype", "torch_dtype")  # ignored, because the recipe's precision decides
_FIXED = ("use_cache", "return_dict")  # not settable, because the training step relies on them


def require_transformers(model: str) -> None:
    """Import transformers, and make it report only errors unless TRANSFORMERS_VERBOSITY is set.

    Raises:
        UsageError: It is not installed or cannot be imported.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UsageError(f"{model} needs transformers: pip install 'sm3-memprof[hf]'") from error
    except Exception as error:
        raise UsageError(f"importing transformers raised {describe(error)}") from error
    if "TRANSFORMERS_VERBOSITY" not in os.environ:  # otherwise it prints its hints once for each trial
        transformers.logging.set_verbosity_error()


def read_config(source: str) -> dict[str, Any]:
    """Read the JSON object of a configuration.

    Args:
        source: The path of a `config.json` under any name, a folder with one, or the id of a model on the hub.

    Returns:
        The fields of the configuration.

    Raises:
        UsageError: There is no configuration, or it is not a JSON object.
    """
    path = Path(source).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        if _HUB_ID.fullmatch(source) and not source.endswith(".json"):
            return _download(source)
        raise UsageError(f"there is no file {file}; hf: takes a config.json, its folder, or the id of a model")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{file} holds {kind(raw)}, not a configuration")
    return raw


def _download(source: str) -> dict[str, Any]:
    from transformers import PretrainedConfig

    try:
        raw: dict[str, Any] = PretrainedConfig.get_config_dict(source)[0]
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"there is no file {source}, and the hub does not give its configuration: {why}") from error
    if not raw:
        raise UsageError(f"{source} has no config.json on the hub; is it a transformers model?")
    return raw


def make_config(model: str, raw: Mapping[str, Any]) -> Any:
    """Return the `PretrainedConfig` of a configuration, without its dtype.

    Args:
        model: The name of the model, for error messages.
        raw: The fields, as `read_config` returns them.

    Returns:
        The configuration.

    Raises:
        UsageError: The installed transformers does not know the model type, or refuses a value.
    """
    from transformers import CONFIG_MAPPING

    name = raw.get("model_type")
    if name is None:
        raise UsageError(f"the configuration of {model} has no model_type, so it describes no transformers model")
    if name not in CONFIG_MAPPING:
        raise UsageError(f"the installed transformers has no model_type {name!r}; a newer one may have it")
    try:
        return CONFIG_MAPPING[name].from_dict({key: raw[key] for key in raw if key not in _DTYPE})
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"transformers refuses the configuration of {model}: {why}") from error


def integers(config: Any) -> dict[str, int]:
    """Return the integer fields of a configuration that determine the size of the model. They are its knobs."""
    from transformers import PretrainedConfig

    of_any_model = PretrainedConfig().to_dict()  # fields that every model has, such as settings of generation
    fields = {name: value for name, value in config.to_dict().items() if type(value) is int}
    return {k: v for k, v in fields.items() if k not in of_any_model and not k.endswith("_token_id")}


def positions(config: Any) -> int | None:
    """Return the number of tokens that the model has positions for, or None if there is no limit."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if type(most) is not int or most < 1:
        return None
    return most - (config.pad_token_id or 0) - 1 if config.model_type in _SHIFTED else most


def scale_knob(config: Any) -> str | None:
    """Return the name of the field that gives the number of layers, or None if no single field does."""
    fields = integers(config)
    standard = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return next((name for name in (standard, *_LAYERS) if name in fields), None)


def change(model: str, raw: Mapping[str, Any], knobs: Mapping[str, KnobValue]) -> tuple[Any, dict[str, KnobValue]]:
    """Set knobs in a configuration.

    Integers, floats and bools can be set, by the configuration's own name (`n_layer`) or by the standard name
    (`num_hidden_layers`). Values that the class derives from them (head widths, layer kinds) are derived again.

    Args:
        model: The name of the model, for error messages.
        raw: The fields, as `read_config` returns them.
        knobs: The values to set.

    Returns:
        The configuration, and the knobs under the configuration's own names.

    Raises:
        UsageError: A knob is unknown, has another type, or the class refuses its value.
    """
    config = make_config(model, raw)
    fields = {name: value for name, value in config.to_dict().items() if _is_settable(name, value)}
    changed: dict[str, KnobValue] = {}
    for name, value in knobs.items():
        own = config.attribute_map.get(name, name)
        if own not in fields:
            hint = did_you_mean(name, ["seq_len", *integers(config)])
            raise UsageError(f"{model} has no knob {name!r}{hint}")
        changed[own] = coerce(model, name, value, type(fields[own]))
    if not changed:
        return config, changed
    return make_config(model, {**raw, **changed, **_follow_depth(raw, config, changed)}), changed


def _is_settable(name: str, value: Any) -> bool:
    return (value is None or isinstance(value, (int, float))) and name not in _FIXED


def _follow_depth(raw: Mapping[str, Any], config: Any, changed: Mapping[str, KnobValue]) -> dict[str, Any]:
    """Return the fields that change with the number of layers: the layer kinds, and an equally deep decoder."""
    scale, fields = scale_knob(config), integers(config)
    if scale is None or scale not in changed:
        return {}
    follow: dict[str, Any] = {"layer_types": None} if "layer_types" in raw else {}
    for name in _DECODER_LAYERS:
        if fields.get(name) == fields[scale] and name not in changed:
            follow[name] = changed[scale]
    return follow
