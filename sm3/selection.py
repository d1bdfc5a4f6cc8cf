"""Which cover a parameter gets: chosen per group, per parameter, or by a pattern of the parameter's name."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from .covers import NAMED, Cover

OneCover = Cover | str
CoverChoice = OneCover | Mapping[Any, OneCover]


def named_cover(choice: CoverChoice) -> Cover | dict[Any, Cover]:
    """Replace the names of covers by the covers.

    Args:
        choice: a cover, its name, or a mapping from name patterns or parameters to either.

    Raises:
        ValueError: a name is unknown.
        TypeError: a value is not a cover, or a key of the mapping is neither a pattern nor a parameter.
    """
    if isinstance(choice, Cover):
        return choice
    if isinstance(choice, str):
        if choice not in NAMED:
            raise ValueError(f"unknown cover {choice!r}: choose one of {', '.join(NAMED)}, or pass a sm3.covers.Cover")
        return NAMED[choice]
    if not isinstance(choice, Mapping):
        raise TypeError(f"cover must be a name, a Cover or a mapping to them, not {type(choice).__name__}")
    if not all(isinstance(key, str | Tensor) for key in choice):
        raise TypeError("the keys of a cover mapping must be name patterns or parameters")
    return {key: _single(cover) for key, cover in choice.items()}


def _single(choice: OneCover) -> Cover:
    cover = named_cover(choice)
    if isinstance(cover, Cover):
        return cover
    raise TypeError("a cover mapping maps to covers, not to further mappings")


def covers_of(group: dict[str, Any]) -> list[Cover]:
    """Return the cover of each parameter of a group.

    Args:
        group: a parameter group of the optimizer. If its cover is a mapping, the first key that matches a parameter
            counts; a parameter that no key matches gets the slices.

    Raises:
        ValueError: the mapping has name patterns, but the parameters have no names.
    """
    choice, params = group["cover"], group["params"]
    if isinstance(choice, str):  # the option was set after construction
        choice = named_cover(choice)
    if isinstance(choice, Cover):
        return [choice] * len(params)
    names = group.get("param_names")
    if names is None and any(isinstance(key, str) for key in choice):
        raise ValueError("covers by name pattern need names: pass model.named_parameters() to SM3")
    return [_first_match(choice, *pair) for pair in zip(names or [""] * len(params), params, strict=True)]


def _first_match(choice: Mapping[Any, Cover], name: str, param: Tensor) -> Cover:
    for key, cover in choice.items():
        if key is param or (isinstance(key, str) and fnmatchcase(name, key)):
            return cover
    return NAMED["slices"]
