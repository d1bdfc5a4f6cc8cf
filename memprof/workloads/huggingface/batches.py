"""Makes batches for Hugging Face models: the inputs of each kind of head, with the sizes of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Head:
    """A kind of head that memprof makes batches for.

    Attributes:
        table: The variable part of the name of the transformers table `MODEL_FOR_..._MAPPING_NAMES` with its classes.
        images: Whether it takes `pixel_values`; otherwise it takes `input_ids`.
        draw: A function that draws the inputs and labels of one batch. It takes the configuration, the batch size and
            the length: the number of tokens in a sample, or the height and width of an image if the configuration has
            no image size.
    """

    table: str
    images: bool
    draw: Callable[[Any, int, int], Batch]


def _ids(config: Any, batch_size: int, length: int) -> Tensor:
    return torch.randint(config.get_text_config().vocab_size, (batch_size, length))


def _per_token(config: Any, batch_size: int, length: int) -> Batch:
    """Return a batch for a language model, which predicts every token. Encoder and decoder get the same length."""
    return {"input_ids": _ids(config, batch_size, length), "labels": _ids(config, batch_size, length)}


def _pretraining(config: Any, batch_size: int, length: int) -> Batch:
    follows = torch.randint(2, (batch_size,))
    return {**_per_token(config, batch_size, length), "next_sentence_label": follows}


def _labels(config: Any, batch_size: int) -> Tensor:
    """Return labels for a classification, a regression or a multi-label classification, as transformers takes them."""
    if config.num_labels == 1:
        return torch.randn(batch_size)
    if getattr(config, "problem_type", None) == "multi_label_classification":
        return torch.randint(2, (batch_size, config.num_labels)).float()
    return torch.randint(config.num_labels, (batch_size,))


def _sequence(config: Any, batch_size: int, length: int) -> Batch:
    return {"input_ids": _ids(config, batch_size, length), "labels": _labels(config, batch_size)}


def _tokens(config: Any, batch_size: int, length: int) -> Batch:
    labels = torch.randint(config.num_labels, (batch_size, length))
    return {"input_ids": _ids(config, batch_size, length), "labels": labels}


def _answer(config: Any, batch_size: int, length: int) -> Batch:
    spans = {name: torch.randint(length, (batch_size,)) for name in ("start_positions", "end_positions")}
    return {"input_ids": _ids(config, batch_size, length), **spans}


def _image(config: Any, batch_size: int, length: int) -> Batch:
    size = getattr(config, "image_size", None) or length
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = getattr(config, "num_channels", 3)
    return {
        "pixel_values": torch.randn(batch_size, channels, height, width),
        "labels": _labels(config, batch_size),
    }


HEADS = (
    Head("SEQ_TO_SEQ_CAUSAL_LM", False, _per_token),
    Head("IMAGE_CLASSIFICATION", True, _image),
    Head("MASKED_LM", False, _per_token),
    Head("CAUSAL_LM", False, _per_token),
    Head("SEQUENCE_CLASSIFICATION", False, _sequence),
    Head("TOKEN_CLASSIFICATION", False, _tokens),
    Head("QUESTION_ANSWERING", False, _answer),
)
NEXT_SENTENCE = Head("PRETRAINING", False, _pretraining)
