"""Which cover a parameter gets: by group, by parameter, or by the pattern of its name."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from .covers import NAMED, Cover

OneCover = Cover | str
CoverChoice = OneCover | Mapping[Any, OneCover]


def named_cover(choice: CoverChoice) -> Cover | dict[Any, Cover]:
    """Replace names by covers.

    Raises:
        ValueError: an unknown name.
        TypeError: something that is no cover, or a mapping key that is neither a pattern nor a parameter.
    """
    if isinstance(choice, Cover):
        return choice
    if isinstance(choice, str):
        if choice not in NAMED:
            raise ValueError(
                f"unknown cover {choice!r}: choose one of {', '.join(NAMED)}, or pass a sm3.covers.Cover"
            )
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


def cover_of(group: dict[str, Any], param: Tensor) -> Cover:
    """Return the cover of one parameter of a group: the first key that matches, else the slices.

    Raises:
        ValueError: patterns were given but the parameters came without names.
    """
    choice = group["cover"]
    if isinstance(choice, Cover):
        return choice
    name = _name_of(group, param)
    for key, cover in choice.items():
        if key is param or (isinstance(key, str) and name is not None and fnmatchcase(name, key)):
            return _single(cover)
    return NAMED["slices"]


def _name_of(group: dict[str, Any], param: Tensor) -> str | None:
    names = group.get("param_names")
    if names is None:
        if any(isinstance(key, str) for key in group["cover"]):
            raise ValueError("covers by name pattern need names: pass model.named_parameters() to SM3")
        return None
    return next(str(name) for name, other in zip(names, group["params"], strict=True) if other is param)
