"""Gives a script what torchrun would give it: the environment, and process groups that memprof creates itself.

Whatever backend a script names (`nccl`, `gloo`, `cpu:gloo,cuda:nccl`, none), its groups are created by the function
of the measurement or of the prediction, and they report the name that the script gave.

Private API of PyTorch, checked on 2.13.0: `torch.distributed.distributed_c10d._new_process_group_helper`, which makes
every group, and `torch.distributed.distributed_c10d._world`, where the names of their backends are kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from memprof.errors import UsageError
from memprof.scripts.places import caller, place_of
from memprof.scripts.stopping import ScriptRefused

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
ADDRESS = "127.0.0.1"
_GPUS_OF_A_MACHINE = 8
_BACKEND_PLACE = 3  # the index among the arguments of `_new_process_group_helper`
_DEVICE = "device_id"
_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def ranks_of_a_machine(world_size: int) -> int:
    """Return how many ranks share a machine: eight if the world size is a larger multiple of eight, otherwise all."""
    many = world_size > _GPUS_OF_A_MACHINE and world_size % _GPUS_OF_A_MACHINE == 0
    return _GPUS_OF_A_MACHINE if many else world_size


def torchrun_environment(rank: int, world_size: int, local_size: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun sets for a rank.

    Args:
        rank: The rank of this process among all ranks.
        world_size: The number of all ranks.
        local_size: The number of ranks on each machine.
        port: The port at which the ranks find each other.
    """
    machine, local = divmod(rank, local_size)
    numbers = {
        "RANK": rank,
        "LOCAL_RANK": local,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": local_size,
        "GROUP_RANK": machine,
        "GROUP_WORLD_SIZE": world_size // local_size,
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": world_size,
        "MASTER_PORT": port,
        "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_MAX_RESTARTS": 0,
    }
    texts = {
        "MASTER_ADDR": ADDRESS,
        "ROLE_NAME": "default",
        "TORCHELASTIC_RUN_ID": "none",
        _AGENT_STORE: "True",
    }
    return {**{name: str(number) for name, number in numbers.items()}, **texts}


class ProcessGroups:
    """The process groups of a script.

    Attributes:
        made: Whether the script has created its first process group.
    """

    made = False


@contextmanager
def torchrun(
    environment: Mapping[str, str],
    backend: str | None = None,
    maker: Callable[..., Any] | None = None,
    adapt: Callable[[Any, str], None] | None = None,
) -> Iterator[ProcessGroups]:
    """Give the script in the `with` block torchrun's environment, and create all its process groups with one backend.

    Args:
        environment: The environment variables of the rank.
        backend: The name under which that backend is registered with PyTorch; None to leave the groups as they are.
        maker: Creates a group from a store, a rank, a size and a timeout.
        adapt: Called with every group and the name of the backend that the script asked for.

    Yields:
        An object that says whether the script has created a process group.

    Raises:
        UsageError: This process already belongs to a process group.
    """
    if dist.is_initialized():
        raise UsageError("this process is in a process group already: run the script in another, as the CLI does")
    make: Callable[..., Any] = c10d._new_process_group_helper
    groups = ProcessGroups()
    world_size = int(environment["WORLD_SIZE"])

    def made(*args: Any, **kwargs: Any) -> Any:
        wanted = args[_BACKEND_PLACE]
        if not groups.made and args[0] != world_size:
            raise ScriptRefused(UsageError(_other_size(args[0], world_size)))
        groups.made = True
        if backend is None:
            return make(*args, **kwargs)
        # A device that is given here would only cause the communicator to be created at once.
        kwargs = {name: None if name == _DEVICE else value for name, value in kwargs.items()}
        group, store = make(*args[:_BACKEND_PLACE], dist.Backend(backend), *args[_BACKEND_PLACE + 1 :], **kwargs)
        if group in c10d._world.pg_map:
            c10d._world.pg_map[group] = (wanted, c10d._world.pg_map[group][1])
            if adapt is not None:
                adapt(group, str(wanted))
        return group, store

    excepthook = sys.excepthook  # `init_process_group` replaces it with one that puts the rank before tracebacks
    if backend is not None and maker is not None:
        dist.Backend.register_backend(backend, maker, devices=["cpu", "cuda"])
    try:
        with patch.dict(os.environ, environment), patch.object(c10d, "_new_process_group_helper", made):
            yield groups
    finally:
        sys.excepthook = excepthook
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def spawned_here(world_size: int | None) -> Iterator[None]:
    """Make `torch.multiprocessing.spawn` in the `with` block run only this process's rank, in this process.

    Args:
        world_size: The number of all ranks; None if the user gave none. A script that starts processes is then refused.
    """

    def start(
        function: Callable[..., Any], args: tuple[Any, ...] = (), nprocs: int = 1, *more: Any, **named: Any
    ) -> Any:
        place = place_of(caller()) or "the script"
        if world_size is None:
            text = f"{place} starts processes of its own, which are not followed; give --world-size {nprocs} to run one"
            raise ScriptRefused(UsageError(text))
        if nprocs != int(os.environ["LOCAL_WORLD_SIZE"]):
            raise ScriptRefused(
                UsageError(f"{place} starts {nprocs} processes, and --world-size is {world_size}; give {nprocs}")
            )
        os.environ.pop(_AGENT_STORE, None)  # the ranks find each other in the way that the script says
        function(int(os.environ["LOCAL_RANK"]), *args)
        joins = named.get("join", more[0] if more else True)
        return None if joins else _Ended()

    names: dict[str, Any] = {"spawn": start, "start_processes": start}
    with (
        patch.multiple(torch.multiprocessing, **names),
        patch.multiple(import_module("torch.multiprocessing.spawn"), **names),
    ):
        yield


class _Ended:
    """The object that `torch.multiprocessing.spawn` returns with `join=False`, for processes that have ended."""

    processes: tuple[Any, ...] = ()

    def join(self, *arguments: Any, **named: Any) -> bool:
        return True


def _other_size(made: int, given: int) -> str:
    where = place_of(caller())
    return f"{where or 'the script'} makes a process group of {made}, and --world-size is {given}; give {made}"


def without_group(program: str, world_size: int) -> str:
    """Return the note on a script that was to run as one of several ranks but created no process group."""
    return (
        f"{program} made no process group (torch.distributed.init_process_group), so each of the {world_size} ranks "
        "trains by itself, with everything that it holds."
    )


def wants_ranks(error: BaseException) -> bool:
    """Return whether a script failed because its environment has no rank or world size."""
    if any(name in os.environ for name in VARIABLES):
        return False
    if isinstance(error, KeyError):
        return bool(error.args) and error.args[0] in VARIABLES
    return isinstance(error, ValueError) and any(
        f"environment variable {name} expected" in str(error) for name in VARIABLES
    )
