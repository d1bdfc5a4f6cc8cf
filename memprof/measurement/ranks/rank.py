"""The process of one rank of a trial: it joins the others, trains, reports its outcome, and waits to be ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel

from memprof.documents.jobs import Step, Trial
from memprof.errors import UsageError
from memprof.measurement.ranks.gloo import join_by_gloo
from memprof.measurement.trial import run_trial
from memprof.user_code import describe, is_lost_rank
from memprof.workers.worker import guarded

# The ranks are on one machine. Otherwise gloo would use the address of the machine's name, which may not exist.
_LOOPBACK = "127.0.0.1"


class Lost(BaseModel):
    """The answer of a rank that lost the connection to another rank, which knows the reason.

    Attributes:
        message: The error that the rank saw.
    """

    kind: Literal["lost"] = "lost"
    message: str


def enter(
    rank: int,
    trial: Trial,
    emit: Callable[[Step], None],
    store_socket: tuple[int, int],
    channels: list[Connection],
    parent: int,
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
    """
    # Forked processes inherit the signals that the fork server ignores. The kernel sends SIGINT when the parent dies.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getppid() != parent:
        os._exit(1)
    for other, channel in enumerate(channels):
        if other != rank:
            channel.close()
    answer = guarded(lambda: _train(rank, trial, emit, store_socket))
    channels[rank].send_bytes(answer.model_dump_json().encode())
    signal.pause()


def _train(rank: int, trial: Trial, emit: Callable[[Step], None], store_socket: tuple[int, int]) -> Any:
    own = trial.model_copy(update={"device": own_device(trial.device, rank)})
    check_devices(trial.device, trial.recipe.world_size)
    torch.set_num_threads(max(1, torch.get_num_threads() // trial.recipe.world_size))
    _join(rank, trial.recipe.world_size, own.device, store_socket)
    try:
        return run_trial(own, emit if rank == 0 else lambda step: None, rank)
    except Exception as error:
        if not is_lost_rank(error):
            raise
        return Lost(message=describe(error))


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


def _join(rank: int, world_size: int, device: str, store_socket: tuple[int, int]) -> None:
    """Make the process group, and set torchrun's environment variables for code that reads them."""
    descriptor, port = store_socket
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {name: str(world_size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    os.environ |= {"MASTER_ADDR": _LOOPBACK, "MASTER_PORT": str(port)}
    listens: dict[str, Any] = {"is_master": True, "master_listen_fd": descriptor} if rank == 0 else {}
    store = dist.TCPStore(_LOOPBACK, port, world_size, wait_for_workers=False, **listens)  # type: ignore[attr-defined]
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
