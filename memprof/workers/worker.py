"""What a freshly forked worker does with its one job: answer with messages, one JSON object per line."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from memprof.devices.host import describe_environment, device_memory_bytes
from memprof.documents.comparison import Run
from memprof.documents.jobs import (
    Answer,
    DeviceInquiry,
    Findings,
    FitForecast,
    Forecast,
    Inquiry,
    Mistake,
    Outcome,
    Outcomes,
    ScriptFindings,
    ScriptForecast,
    ScriptInquiry,
    ScriptTrial,
    Trial,
    Weighing,
)
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.errors import ExitCode, MemprofError, UsageError
from memprof.measurement.trial import run_trial
from memprof.optimizers.registry import build_optimizer, check_options, find_known
from memprof.scripts.program import check_program
from memprof.user_code import describe
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

    with suppress(KeyboardInterrupt):
        send(guarded(lambda: _answer(request, send)))


def guarded(job: Callable[[], Answer]) -> Answer | Mistake:
    """Return what a job returns, or as a message what it raises."""
    try:
        return job()
    except MemprofError as error:
        return Mistake(message=str(error), exit_code=error.exit_code)
    except Exception as error:
        if os.environ.get("MEMPROF_DEBUG"):
            traceback.print_exc()
        message = f"internal error in a trial: {describe(error)}; --debug shows the traceback"
        return Mistake(message=message, exit_code=ExitCode.FAILED)


def _answer(request: dict[str, Any], send: Callable[[BaseModel], None]) -> Answer:
    if request["job"] == "inquiry":
        return _inquire(Inquiry.model_validate(request))
    if request["job"] == "forecast":
        return _forecast(Forecast.model_validate(request))
    if request["job"] == "devices":
        from memprof.devices.resolve import find_devices

        return find_devices(DeviceInquiry.model_validate(request))
    if request["job"] == "fit":
        from memprof.search.forecast import forecast_fit

        return forecast_fit(FitForecast.model_validate(request), send)
    if request["job"] == "weigh":
        from memprof.search.advise.evaluate import weigh

        return weigh(Weighing.model_validate(request))
    if request["job"].startswith("script"):
        return _about_script(request, send)
    trial = Trial.model_validate(request)
    if trial.recipe.strategy == "single":
        return run_trial(trial, send)
    from memprof.measurement.ranks.launch import run_ranks

    return run_ranks(trial, send, guarded)


def _about_script(request: dict[str, Any], send: Callable[[BaseModel], None]) -> Answer:
    if request["job"] == "script-inquiry":
        return _inquire_script(ScriptInquiry.model_validate(request))
    if request["job"] == "script-forecast":
        from memprof.prediction.script import predict_script

        return predict_script(ScriptForecast.model_validate(request), send)
    from memprof.measurement.script import measure_script

    return measure_script(ScriptTrial.model_validate(request), send)


def _inquire_script(inquiry: ScriptInquiry) -> ScriptFindings:
    device, capacity = resolve_device(inquiry.device)
    check_program(inquiry.script)
    for one in inquiry.substitutions:
        if not one.is_as_is:
            _check_optimizer(one.spec)
    return ScriptFindings(
        environment=describe_environment(inquiry.command, device if is_real(device) else "cpu"),
        device=device,
        simulated=not is_real(device),
        device_memory_bytes=capacity,
    )


def _inquire(inquiry: Inquiry) -> Findings:
    device, capacity = resolve_device(inquiry.device)
    loaded = load_workload(inquiry.workload)
    for optimizer in inquiry.optimizers:
        _check_optimizer(optimizer)
    return Findings(
        environment=describe_environment(inquiry.command, device if is_real(device) else "cpu"),
        device=device,
        simulated=not is_real(device),
        device_memory_bytes=memory_of_rank(device, capacity, inquiry.world_size),
        name=loaded.name,
        knobs=loaded.knobs,
        scale=loaded.scale,
        lengths=loaded.lengths,
        positions=loaded.positions,
    )


def _check_optimizer(spec: OptimizerSpec) -> None:
    """Refuse unknown options, and of known optimizers wrong values, before anything is trained."""
    check_options(spec)
    if find_known(spec) is not None:
        build_optimizer(spec, [("weight", torch.nn.Parameter(torch.zeros(2, 2)))])


def _forecast(forecast: Forecast) -> Outcomes:
    from memprof.devices.resolve import find_target
    from memprof.prediction.accuracy import accuracy, standing
    from memprof.prediction.run import predict_runs

    target = find_target(forecast.device)
    if forecast.capacity_bytes is not None and target.capacity_bytes is not None:
        mine = is_real(forecast.device)  # what its driver calls its memory includes the context
        capacity = min(forecast.capacity_bytes, target.capacity_bytes) if mine else forecast.capacity_bytes
        target = replace(target, capacity_bytes=capacity)
    runs = predict_runs(
        forecast.workload,
        forecast.optimizers,
        forecast.recipe,
        forecast.batch_size,
        target,
        forecast.steps,
        timeline=forecast.timeline,
        trace_folder=Path(forecast.trace_folder) if forecast.trace_folder is not None else None,
    )
    notes = [standing()] if target.kind == "cuda" and accuracy() is None else []
    noted = [run.model_copy(update={"notes": [*run.notes, *notes]}) for run in runs]
    return Outcomes(outcomes=[Outcome(run=run, levels=_levels(run)) for run in noted])


def _levels(run: Run) -> dict[str, list[int]]:
    return {name: [peak.reserved_bytes or peak.allocated_bytes] for name, peak in run.phases.items()}


def memory_of_rank(device: str, memory_bytes: int, world_size: int) -> int:
    """Return what each rank has of a device's memory: ranks share the CPU's, and have a GPU of their own each."""
    return memory_bytes // world_size if device == "cpu" else memory_bytes


def is_real(device: str) -> bool:
    """Whether a resolved device is one of this machine's."""
    return device == "cpu" or device.startswith("cuda:")


def resolve_device(name: str) -> tuple[str, int]:
    """Return the device that a `--device` means, and its memory in bytes: what the driver or the catalog says.

    `auto`, `cpu`, `cuda` and `cuda:N` are this machine's; any other name or a size is a simulated GPU's.

    Raises:
        UsageError: this machine has no such device, or the catalog no such GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name, device_memory_bytes(name)
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        from memprof.devices.catalog import find_device

        simulated = find_device(name)
        return simulated.name, simulated.capacity_bytes
    if not torch.cuda.is_available():
        raise UsageError(f"--device {name} needs a CUDA device and this PyTorch sees none; use --device cpu")
    if int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no {name}: this machine has {torch.cuda.device_count()} (`memprof devices`)")
    name = f"cuda:{index or 0}"
    return name, device_memory_bytes(name)
