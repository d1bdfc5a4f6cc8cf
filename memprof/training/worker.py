"""What a freshly forked worker does with its one job: answer with messages, one JSON object per line."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel

from memprof.errors import ExitCode, MemprofError, UsageError
from memprof.faults import describe
from memprof.machine import describe_environment, device_memory_bytes
from memprof.optimizers.registry import build_optimizer, check_options, find_known
from memprof.optimizers.spec import OptimizerSpec
from memprof.plan import Findings, Inquiry, Mistake, Outcome, Trial
from memprof.training.trial import run_trial
from memprof.workloads.loader import load_workload


def work(channel: socket.socket, request: dict[str, Any]) -> None:
    """Do the job that the request describes and send the answer; never raises.

    Whatever the user's code prints goes to stderr, so that stdout stays the results' own.
    """
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stream = channel.makefile("w", encoding="utf-8")

    def send(message: BaseModel) -> None:
        stream.write(message.model_dump_json() + "\n")
        stream.flush()

    try:
        send(_answer(request, send))
    except MemprofError as error:
        send(Mistake(message=str(error), exit_code=error.exit_code))
    except KeyboardInterrupt:
        pass
    except Exception as error:
        if os.environ.get("MEMPROF_DEBUG"):
            traceback.print_exc()
        message = f"internal error in a trial: {describe(error)}; --debug shows the traceback"
        send(Mistake(message=message, exit_code=ExitCode.FAILED))


def _answer(request: dict[str, Any], send: Callable[[BaseModel], None]) -> Findings | Outcome:
    if request["job"] == "inquiry":
        return _inquire(Inquiry.model_validate(request))
    return run_trial(Trial.model_validate(request), send)


def _inquire(inquiry: Inquiry) -> Findings:
    device = resolve_device(inquiry.device)
    loaded = load_workload(inquiry.workload)
    for optimizer in inquiry.optimizers:
        _check_optimizer(optimizer)
    return Findings(
        environment=describe_environment(inquiry.command, device),
        device=device,
        device_memory_bytes=device_memory_bytes(device),
        name=loaded.name,
        knobs=loaded.knobs,
        scale=loaded.scale,
    )


def _check_optimizer(spec: OptimizerSpec) -> None:
    """Refuse unknown options, and of known optimizers wrong values, before anything is trained."""
    check_options(spec)
    if find_known(spec) is not None:
        build_optimizer(spec, [("weight", torch.nn.Parameter(torch.zeros(2, 2)))])


def resolve_device(name: str) -> str:
    """Return `cpu` or `cuda:N` for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: the name is none of these, or this machine has no such device.
    """
    if name in ("auto", "cpu"):
        return "cuda:0" if name == "auto" and torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        raise UsageError(f"{name!r} is no device to measure on; use auto, cpu, cuda or cuda:N (`memprof devices`)")
    if not torch.cuda.is_available():
        raise UsageError(f"--device {name} needs a CUDA device and this PyTorch sees none; use --device cpu")
    if int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no {name}: this machine has {torch.cuda.device_count()} (`memprof devices`)")
    return f"cuda:{index or 0}"
