"""The GPUs that can be simulated: those of `data/devices.json`, and those of the user's own file in the same form.

The environment variable `MEMPROF_DEVICES` names the user's file. An entry in it replaces the entry of the same name:

    {"schema": "memprof.devices/1",
     "devices": [{"name": "my-gpu-64gb", "memory_bytes": 68182605824, "compute_capability": "9.0", "sm_count": 120}]}

An entry says where its memory figure was read. The memory that the driver keeps for itself depends on its version and
on the operating system (an RTX 4090 has 24081 MiB under Linux today, 24210 in 2023, 24563 under Windows). A device's
memory is therefore known to within about one per cent.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memprof.devices.context import late_bytes, threads_per_sm
from memprof.errors import UsageError
from memprof.units import format_size, parse_size

OWN_DEVICES = "MEMPROF_DEVICES"
_GENERIC = re.compile(r"\s*\d+(\.\d+)?\s*[kmgt]i?b\s*", re.IGNORECASE)
_LOCAL_BYTES_PER_THREAD = 2048
_EAGER_LOADING_BYTES = 380 * 10**6
_CONTEXT_RULE = (
    "2 KiB for each thread the GPU can hold at once: 426 MiB on an RTX 6000 Ada (unslothai/unsloth-zoo#1053), 246 MiB "
    "on an RTX 3090 where 256 were seen (invoke-ai/InvokeAI#9413); loading all kernels at once adds 380 MB "
    "(pytorch/pytorch#86509)"
)


class _Entry(BaseModel):
    """One GPU in the data file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    title: str | None = None
    aliases: list[str] = Field(default_factory=list)
    memory_bytes: int = Field(gt=0)
    memory_how: Literal["reported", "computed"] = "reported"
    memory_source: str = Field(default="the user's file", min_length=10)
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    sm_count: int = Field(gt=0)
    bandwidth_gb_per_second: int | None = Field(default=None, gt=0)
    context_bytes: int | None = Field(default=None, gt=0)
    context_source: str | None = None


class _Catalog(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: Literal["memprof.devices/1"] = Field(alias="schema")
    note: str = ""
    devices: list[_Entry]


@dataclass(frozen=True)
class SimulatedDevice:
    """A GPU for which memory is predicted.

    Attributes:
        name: the name that `--device` takes.
        title: the driver's name for the GPU.
        aliases: other short names.
        total_bytes: `torch.cuda.get_device_properties().total_memory` under Linux.
        memory_reported: whether that figure was read from such a report; False if it was computed from a similar GPU's.
        memory_source: where the figure was read, or how it was computed.
        compute_capability: the major and minor version.
        sm_count: the number of streaming multiprocessors.
        bandwidth_gb_per_second: the memory bandwidth in 10^9 bytes per second; None if it is not known.
        context_bytes: an estimate of what the CUDA context takes with lazily loaded kernels.
        context_range_bytes: the lower and the upper limit between which the context was seen to lie.
        context_source: where the estimate comes from.
        generic: whether this is not a GPU of the catalog but a size that stands for one.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    total_bytes: int
    memory_reported: bool
    memory_source: str
    compute_capability: tuple[int, int]
    sm_count: int
    bandwidth_gb_per_second: int | None
    context_bytes: int
    context_range_bytes: tuple[int, int]
    context_source: str
    generic: bool = False

    @property
    def capacity_bytes(self) -> int:
        """The bytes left for the caching allocator, without the context and what is loaded later."""
        return self.total_bytes - self.context_bytes - self.late_bytes

    @property
    def late_bytes(self) -> int:
        """The bytes that a training adds to the context (`memprof.devices.context`)."""
        return late_bytes(self.sm_count, self.compute_capability)


@cache
def catalog() -> tuple[SimulatedDevice, ...]:
    """Return the GPUs of the data file and of the user's file, ordered by name.

    Raises:
        UsageError: the user's file cannot be read.
    """
    text = (files("memprof.devices") / "data" / "devices.json").read_text(encoding="utf-8")
    entries = {entry.name: entry for entry in _Catalog.model_validate_json(text).devices}
    own = os.environ.get(OWN_DEVICES)
    if own:
        entries.update({entry.name: entry for entry in _own_entries(Path(own))})
    return tuple(_device(entries[name]) for name in sorted(entries))


def _own_entries(path: Path) -> list[_Entry]:
    try:
        return _Catalog.model_validate_json(path.read_text(encoding="utf-8")).devices
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"{OWN_DEVICES} names {path}, which cannot be read: {reason}; correct or unset it") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UsageError(f"{path} ({OWN_DEVICES}) is not a valid list of devices: {where}: {first['msg']}") from None


def find_device(name: str) -> SimulatedDevice:
    """Return a GPU by its name, its alias or the driver's name, or a generic one for a size such as `24GiB`.

    Args:
        name: the name or the size.

    Raises:
        UsageError: there is no such GPU; the message names the nearest.
    """
    if _GENERIC.fullmatch(name):
        return generic_device(parse_size(name), "".join(name.split()))
    known = devices_by_name()
    found = known.get(_plain(name))
    if found is None:
        raise UsageError(
            f"{name!r} is not a GPU that can be simulated{_nearest(name)}; `memprof devices` lists them, and a size "
            "such as 24GiB is one as well"
        )
    return found


def generic_device(total_bytes: int, name: str) -> SimulatedDevice:
    """Return a device with a given amount of memory that otherwise behaves like an A100.

    Args:
        total_bytes: the device's memory in bytes.
        name: the name that `--device` was given.

    Raises:
        UsageError: the memory is too small for a CUDA context.
    """
    model = devices_by_name()["a100-40gb"]
    if total_bytes < model.context_range_bytes[1]:
        least = format_size(model.context_range_bytes[1], 0)
        raise UsageError(f"{format_size(total_bytes)} is less than a CUDA context may take; give at least {least}")
    return SimulatedDevice(
        name=name,
        title=f"generic GPU with {format_size(total_bytes)}",
        aliases=(),
        total_bytes=total_bytes,
        memory_reported=False,
        memory_source="as asked for",
        compute_capability=model.compute_capability,
        sm_count=model.sm_count,
        bandwidth_gb_per_second=None,
        context_bytes=model.context_bytes,
        context_range_bytes=model.context_range_bytes,
        context_source=model.context_source,
        generic=True,
    )


def device_here(device: str) -> SimulatedDevice:
    """Return one of this machine's GPUs as a device to predict for.

    Its figures come from the driver. The figures of the context come from the catalog if the catalog has this GPU.

    Args:
        device: `cuda:N`.
    """
    import torch

    properties = torch.cuda.get_device_properties(device)
    entry = _Entry(
        name=device.replace(":", "-"),
        title=properties.name,
        memory_bytes=properties.total_memory,
        memory_source="this machine's driver",
        compute_capability=f"{properties.major}.{properties.minor}",
        sm_count=properties.multi_processor_count,
    )
    known = devices_by_name().get(_plain(properties.name))
    here = replace(_device(entry), name=device)
    if known is None:
        return here
    return replace(
        here,
        context_bytes=known.context_bytes,
        context_range_bytes=known.context_range_bytes,
        context_source=known.context_source,
    )


def _device(entry: _Entry) -> SimulatedDevice:
    major, minor = map(int, entry.compute_capability.split("."))
    by_rule = entry.sm_count * threads_per_sm((major, minor)) * _LOCAL_BYTES_PER_THREAD
    context = entry.context_bytes or by_rule
    return SimulatedDevice(
        name=entry.name,
        title=entry.title or entry.name,
        aliases=tuple(entry.aliases),
        total_bytes=entry.memory_bytes,
        memory_reported=entry.memory_how == "reported",
        memory_source=entry.memory_source,
        compute_capability=(major, minor),
        sm_count=entry.sm_count,
        bandwidth_gb_per_second=entry.bandwidth_gb_per_second,
        context_bytes=context,
        context_range_bytes=(min(context, by_rule), context + _EAGER_LOADING_BYTES),
        context_source=entry.context_source or _CONTEXT_RULE,
    )


@cache
def devices_by_name() -> dict[str, SimulatedDevice]:
    """Return the devices of the catalog by each of their names, in the plain spelling that is compared."""
    names: dict[str, SimulatedDevice] = {}
    for device in catalog():
        for name in (device.name, *device.aliases, device.title):
            names.setdefault(_plain(name), device)
    return names


def _plain(name: str) -> str:
    """Return a name in lower case with hyphens, without the names of the maker and of the family."""
    hyphened = re.sub(r"[\s_]+", "-", name.strip().lower())
    return re.sub(r"\b(nvidia|geforce|tesla|gpu|generation)\b-?", "", hyphened).strip("-")


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(_plain(name), [device.name for device in catalog()], n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(close)}" if close else ""
