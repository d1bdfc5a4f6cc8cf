"""Loads `hf:PATH_OR_ID`: a model that is built from its Hugging Face configuration, with new weights.

The class is the first of the configuration's `architectures`. If there is none, or if it is a base model, the model
gets the head that such models are usually trained with; a model of both images and text does not get an image head.
Weights are never loaded, and code from the hub is never run. The model is built in float32 whatever the configuration's
dtype, because the recipe's precision decides, and without the cache that only generation uses. Batches have no padding,
and therefore no attention mask.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.user_code import guard
from memprof.workloads.huggingface.batches import HEADS, NEXT_SENTENCE, Batch, Head
from memprof.workloads.huggingface.pretrained_config import (
    change,
    integers,
    make_config,
    positions,
    read_config,
    require_transformers,
    scale_knob,
)
from memprof.workloads.knobs import check_length
from memprof.workloads.module_copies import fake_active
from memprof.workloads.workload import Workload

_SEQ_LEN = 512  # the default number of tokens in a sample, unless the model has fewer positions
_IMAGE_SIZE = 224  # the default height and width in pixels for models whose configuration has no image size


def load_huggingface(spec: WorkloadSpec) -> tuple[str, dict[str, Any], Workload, int | None]:
    """Load an `hf:` model.

    The knobs are the integers of the configuration and the length of a sample. The length is `seq_len`, or for images
    `image_size` if the configuration has no such field. Every sample has that length. The number of positions of the
    model is returned but not used as the length, because it may be a hundred times as long as any sample in practice.

    Args:
        spec: The model and its knobs.

    Returns:
        The name, the knobs, the workload, and the number of positions (None for images and if there is no limit).

    Raises:
        UsageError: transformers is not installed, the configuration cannot be read, a knob does not fit, or memprof
            makes no batches for such a model.
    """
    if spec.inputs or spec.target is not None:
        raise UsageError(f"{spec.model} makes its own batches: drop --{'input' if spec.inputs else 'target'}")
    require_transformers(spec.model)
    raw = read_config(spec.model.removeprefix("hf:"))
    as_written = make_config(spec.model, raw)
    architecture, head = choose_head(as_written)
    own = {name: value for name, value in spec.knobs.items() if name not in _length(as_written, head)}
    config, changed = change(spec.model, raw, own)
    length = {
        name: check_length(spec.model, name, spec.knobs.get(name, default), positions(config))
        for name, default in _length(config, head).items()
    }
    workload = _workload(spec.model, config, architecture, head, *length.values())
    return spec.model, {**length, **integers(config), **changed}, workload, None if head.images else positions(config)


def _length(config: Any, head: Head) -> dict[str, int]:
    """Return the knob for the length of a sample and its default; nothing if the configuration has the length."""
    if not head.images:
        return {"seq_len": min(_SEQ_LEN, positions(config) or _SEQ_LEN)}
    return {"image_size": _IMAGE_SIZE} if getattr(config, "image_size", None) is None else {}


def _workload(name: str, config: Any, architecture: str, head: Head, length: int = 0) -> Workload:
    config.use_cache = False
    if head.table == "SEQUENCE_CLASSIFICATION" and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # decoders classify at the last token that is not padding
    if head.table == "SEQ_TO_SEQ_CAUSAL_LM" and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0  # the decoder's input is this token followed by the labels

    def batch(batch_size: int) -> Batch:
        return head.draw(config, batch_size, length)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value: Tensor = model(**batch).loss
        return value

    model = guard(f"building the model of {name}", lambda: _build(architecture, config), None)
    return Workload(model=model, batch=batch, loss=loss, scale=scale_knob(config))


def _build(architecture: str, config: Any) -> nn.Module:
    import transformers

    build = getattr(transformers, architecture)
    if not fake_active() and not torch.empty(0).is_meta:
        module: nn.Module = build(config)
        return module
    with _no_init_weights():  # some initialisers read values, which fake tensors do not have
        module = build(config)
    module.tie_weights()  # type: ignore[operator]
    return module


def _no_init_weights() -> Any:
    try:
        from transformers.initialization import no_init_weights  # exists from version 5.0 on
    except ImportError:
        from transformers.modeling_utils import no_init_weights
    return no_init_weights()


def choose_head(config: Any) -> tuple[str, Head]:
    """Return the name of the class to build, and the head that describes its batches.

    Raises:
        UsageError: memprof makes no batches for such a class.
    """
    named = (getattr(config, "architectures", None) or [None])[0]
    candidates = [(name, head) for head in HEADS for name in _classes(head.table, config.model_type)]
    candidates = [(name, head) for name, head in candidates if _suits(config, head)]
    if named is None or named in _classes("", config.model_type):
        found = [(name, head) for name, head in candidates if not (head.images and hasattr(config, "text_config"))]
    elif named in _classes(NEXT_SENTENCE.table, config.model_type) and _takes_next_sentence(named):
        found = [(named, NEXT_SENTENCE)]
    else:
        found = [(name, head) for name, head in candidates if name == named]
    if not found:
        raise UsageError(
            f"memprof makes no batches for {named or config.model_type}; write a function in a file of your "
            "own that returns a memprof.Workload with the model, a batch and a loss"
        )
    return found[0]


def _suits(config: Any, head: Head) -> bool:
    """Return whether the head's batches suit the model.

    Classifiers of encoder-decoder models do not: they need end-of-text tokens at certain positions.
    """
    return not getattr(config, "is_encoder_decoder", False) or head.table == "SEQ_TO_SEQ_CAUSAL_LM"


def _classes(table: str, model_type: str) -> list[str]:
    """Return the names of the classes that a table of transformers lists for a model type."""
    from transformers.models.auto import modeling_auto

    name = f"MODEL_FOR_{table}_MAPPING_NAMES" if table else "MODEL_MAPPING_NAMES"
    found = dict(getattr(modeling_auto, name)).get(model_type, ())
    return [found] if isinstance(found, str) else list(found)


def _takes_next_sentence(architecture: str) -> bool:
    import transformers

    return "next_sentence_label" in inspect.signature(getattr(transformers, architecture).forward).parameters
