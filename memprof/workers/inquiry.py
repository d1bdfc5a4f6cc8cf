"""The first job of every command: it checks the arguments and describes what they mean, without training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import BaseModel

from memprof.devices.host import describe_environment
from memprof.devices.resolve import resolve
from memprof.documents.jobs import Findings, Inquiry, ScriptFindings, ScriptInquiry
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.errors import UsageError
from memprof.optimizers.registry import ClosureError, build_optimizer, check_options, find_known
from memprof.scripts.program import check_program
from memprof.workloads.loader import load_workload

_MOST_PROCESSES = 64


def inquire(inquiry: Inquiry, send: Callable[[BaseModel], None]) -> Findings:
    """Describe a workload, the devices and this machine before anything is trained.

    Args:
        inquiry: The arguments to check.
        send: Not used, because this job has no intermediate steps.

    Raises:
        UsageError: A device, the workload or an optimizer is wrong.
    """
    devices = [resolve(name, inquiry.world_size) for name in inquiry.devices]
    loaded = load_workload(inquiry.workload)
    refused = []
    for optimizer in inquiry.optimizers:
        try:
            _check_optimizer(optimizer)
        except ClosureError as error:
            refused.append(error)
    if refused and len(refused) == len(inquiry.optimizers):  # otherwise each is a failed row, and the others finish
        raise refused[0]
    return Findings(
        environment=describe_environment(inquiry.command, "cpu" if devices[0].simulated else devices[0].name),
        devices=devices,
        name=loaded.name,
        knobs=loaded.knobs,
        scale=loaded.scale,
        lengths=loaded.lengths,
        positions=loaded.positions,
    )


def inquire_script(inquiry: ScriptInquiry, send: Callable[[BaseModel], None]) -> ScriptFindings:
    """Check the arguments and describe the device and this machine before the script runs.

    Args:
        inquiry: The arguments to check.
        send: Not used, because this job has no intermediate steps.

    Raises:
        UsageError: The device, the script or an optimizer is at fault.
    """
    device = resolve(inquiry.device, inquiry.world_size or 1)
    if device.name == "cpu" and (inquiry.world_size or 1) > _MOST_PROCESSES:
        raise UsageError(
            f"--world-size {inquiry.world_size} with --device cpu starts as many processes on this machine; give "
            f"{_MOST_PROCESSES} at most, or the name of a GPU to predict for (`memprof devices`)"
        )
    check_program(inquiry.script)
    for one in inquiry.substitutions:
        if not one.is_as_is:
            _check_optimizer(one.spec)
    environment = describe_environment(inquiry.command, "cpu" if device.simulated else device.name)
    return ScriptFindings(environment=environment, device=device)


def _check_optimizer(spec: OptimizerSpec) -> None:
    """Refuse unknown options, and wrong values of the options of known optimizers, before anything is trained."""
    check_options(spec)
    if find_known(spec) is not None:
        build_optimizer(spec, [("weight", torch.nn.Parameter(torch.zeros(2, 2)))])
