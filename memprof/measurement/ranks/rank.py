"""The process of one rank of a trial: it joins the others, trains, reports its outcome, and waits to be ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel

from memprof.documents.jobs import Mistake, ScriptTrial, Trial
from memprof.errors import UsageError
from memprof.measurement.ranks.gloo import BACKEND, Gloo, join_by_gloo
from memprof.measurement.script import measure_script
from memprof.measurement.trial import run_trial
from memprof.scripts.torchrun import ADDRESS, torchrun, torchrun_environment
from memprof.user_code import describe, is_lost_rank
from memprof.workers.worker import guarded


class Lost(BaseModel):
    """The answer of a rank that lost the connection to another rank, which knows the reason.

    Attributes:
        message: The error that the rank saw.
    """

    kind: Literal["lost"] = "lost"
    message: str


def enter(
    rank: int,
    trial: Trial | ScriptTrial,
    emit: Callable[[Any], None],
    store_socket: tuple[int, int],
    channels: list[Connection],
    parent: int,
    outputs: Path | None,
) -> None:
    """Run one rank in a process that was forked for it.

    The parent ends the process once it has answered. A rank that ended by itself would break the connections of the
    others.

    Args:
        rank: The rank of this process.
        trial: The trial, which is the same for every rank.
        emit: Takes every `Step` of the first rank.
        store_socket: The file descriptor and the port of a listening socket. The first rank keeps the store there by
            which all ranks find each other.
        channels: The channels to the parent, one for each rank.
        parent: The process number of the parent.
        outputs: The folder that takes what a script saves.
    """
    # Forked processes inherit the signals that the fork server ignores. The kernel sends SIGINT when the parent dies.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getppid() != parent:
        os._exit(1)
    for other, channel in enumerate(channels):
        if other != rank:
            channel.close()

    def tell(message: Any) -> None:
        """Pass the first rank's steps on, and what any rank has to say when its time is over."""
        if isinstance(message, Mistake):
            channels[rank].send_bytes(message.model_dump_json().encode())
        elif rank == 0:
            emit(message)

    answer = guarded(lambda: _train(rank, trial, tell, store_socket, outputs))
    channels[rank].send_bytes(answer.model_dump_json().encode())
    signal.pause()


def ranks_of(trial: Trial | ScriptTrial) -> int:
    """Return how many ranks a trial has."""
    return trial.world_size or 1 if isinstance(trial, ScriptTrial) else trial.recipe.world_size


def _train(
    rank: int,
    trial: Trial | ScriptTrial,
    emit: Callable[[Any], None],
    store_socket: tuple[int, int],
    outputs: Path | None,
) -> Any:
    world_size = ranks_of(trial)
    own = trial.model_copy(update={"device": own_device(trial.device, rank)})
    check_devices(trial.device, world_size)
    torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
    store = _meet(rank, world_size, store_socket)
    try:
        if isinstance(own, ScriptTrial):
            return _run_script(rank, own, emit, store_socket[1], outputs)
        _join(rank, world_size, own.device, store)
        return run_trial(own, emit, rank)
    except Exception as error:
        cause = error.__cause__ if isinstance(own, ScriptTrial) and error.__cause__ is not None else error
        if not is_lost_rank(cause):
            raise
        return Lost(message=describe(cause))


def _run_script(rank: int, job: ScriptTrial, emit: Callable[[Any], None], port: int, outputs: Path | None) -> Any:
    """Run a script as torchrun would: it makes its own process group, from the store that the first rank keeps."""
    world_size = ranks_of(job)
    environment = torchrun_environment(rank, world_size, world_size, port)
    if job.device.startswith("cuda"):
        with torchrun(environment) as groups:
            return measure_script(job, emit, groups, outputs)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback_interface())
    with torchrun(environment, BACKEND, Gloo) as groups:
        return measure_script(job, emit, groups, outputs)


def own_device(device: str, rank: int) -> str:
    """Return the device of a rank. On GPUs each rank has its own, and on the CPU all ranks share it.

    Args:
        device: The device of the trial.
        rank: The rank.
    """
    return f"cuda:{rank}" if device.startswith("cuda") else device


def check_devices(device: str, world_size: int) -> None:
    """Check that every rank can have a device.

    Args:
        device: The device of the trial.
        world_size: The number of ranks.

    Raises:
        UsageError: There are too few GPUs, or this PyTorch cannot connect the ranks.
    """
    if not device.startswith("cuda"):
        if not dist.is_gloo_available():
            raise UsageError("this PyTorch is built without gloo, by which ranks on the CPU talk; use another build")
        return
    if device not in ("cuda", "cuda:0"):
        raise UsageError(f"several ranks take the GPUs from cuda:0 on: leave {device} to CUDA_VISIBLE_DEVICES")
    found = torch.cuda.device_count()
    if world_size > found:
        raise UsageError(
            f"--world-size {world_size} needs {world_size} GPUs and this machine has {found}; use --device cpu, or "
            "predict for a GPU by its name (`memprof devices`)"
        )
    if not dist.is_nccl_available():
        raise UsageError("this PyTorch is built without NCCL, by which ranks on GPUs talk; use another build")


def _meet(rank: int, world_size: int, store_socket: tuple[int, int]) -> Any:
    """Return the store by which the ranks find each other, which the first of them keeps."""
    descriptor, port = store_socket
    listens: dict[str, Any] = {"is_master": True, "master_listen_fd": descriptor} if rank == 0 else {}
    return dist.TCPStore(ADDRESS, port, world_size, wait_for_workers=False, **listens)  # type: ignore[attr-defined]


def _join(rank: int, world_size: int, device: str, store: Any) -> None:
    """Make the process group; torchrun's variables are set, for code that reads them."""
    os.environ |= torchrun_environment(rank, world_size, world_size, store.port)
    if device.startswith("cuda"):
        own = torch.device(device)
        torch.cuda.set_device(own)
        # Given a device, NCCL connects at once, so that its memory is allocated before the model's.
        dist.init_process_group("nccl", store=store, rank=rank, world_size=world_size, device_id=own)
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback_interface())
    join_by_gloo(store, rank, world_size)


def _loopback_interface() -> str:
    return "lo0" if os.uname().sysname == "Darwin" else "lo"
