"""Records the first steps of a training that another library runs, and saves them as a comparison with one run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from memprof.callbacks.already_alive import living_tensors
from memprof.devices.host import describe_environment, device_memory_bytes
from memprof.documents.comparison import Capacity, Comparison, OptimizerInfo, Run, Steps, WorkloadInfo
from memprof.documents.recipe import Recipe
from memprof.errors import UsageError
from memprof.files import check_writable
from memprof.measurement.meter import Meter, Reading
from memprof.optimizers.implementation import implementation_name
from memprof.optimizers.state_bytes import measure_state
from memprof.trace.modules import compiled_graphs, followed_modules
from memprof.training.counts import count_parameters, state_figures
from memprof.training.labels import Labeller
from memprof.training.session import Session
from memprof.user_code import describe

_P = ParamSpec("_P")
_FEWEST = 3
_NOTE = (
    "Recorded in a running training: of the memory allocated before the recording, only the tensors of the model and "
    "of the optimizer are known."
)

_ONE_RANK = "Recorded on one rank; the memory of the others is not known."


def _harmless(
    method: Callable[Concatenate[TrainingRecorder, _P], None],
) -> Callable[Concatenate[TrainingRecorder, _P], None]:
    """Keep an error of the recorder from ending the training: the recorder warns and stops recording."""

    @wraps(method)
    def run(self: TrainingRecorder, /, *args: _P.args, **keywords: _P.kwargs) -> None:
        if not self.recording and method.__name__ != "begin":
            return
        try:
            method(self, *args, **keywords)
        except Exception as error:
            self.recording = False
            self.hooks.close()
            warnings.warn(f"memprof stopped recording: {describe(error)}", RuntimeWarning, stacklevel=2)

    return run


def sharing(model: nn.Module) -> dict[str, Any]:
    """Return the strategy and the world size of the recipe: `fsdp` if the parameters are sharded, otherwise `ddp`.

    Other ways to distribute a training (pipelines, DeepSpeed's ZeRO) are not recognised and count as `ddp`.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return {"strategy": "single", "world_size": 1}
    shards = any(is_traceable_wrapper_subclass(p) and hasattr(p, "placements") for p in model.parameters())
    first_version = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    return {"strategy": "fsdp" if shards or first_version else "ddp", "world_size": dist.get_world_size()}


class TrainingRecorder:
    """The recorder that the callbacks share. They tell it when the training, a step or a phase begins and ends.

    It records the first `steps` optimizer steps, and the last of them operator by operator. Then the training continues
    undisturbed. The recorder only observes: the tensors of the training are the same as without it.

    Args:
        path: The path of the document.
        steps: The number of steps to record, at least 3: one creates the optimizer's state, one is timed, and one is
            recorded operator by operator.
        force: Whether to overwrite an existing file.

    Raises:
        UsageError: The path cannot be written, or `steps` is below 3.

    Attributes:
        recording: Whether the training has begun and the last step to record has not ended.
        hooks: The hooks to remove when the recording ends.
    """

    def __init__(self, path: str | Path, steps: int = 3, *, force: bool = False) -> None:
        if steps < _FEWEST:
            raise UsageError(f"steps={steps}: record at least {_FEWEST}, the first creates the optimizer's state")
        self._path = Path(path)
        check_writable(self._path, force)
        self._steps = steps
        self.recording = False
        self.hooks = ExitStack()
        self._seconds: list[float] = []

    @_harmless
    def begin(self, model: nn.Module, optimizer: Any, recipe: Recipe, batch_size: int) -> None:
        """Begin the recording with the training.

        Args:
            model: The model, on its device.
            optimizer: The optimizer of its parameters. If it is a wrapper, its attribute `optimizer` is used.
            recipe: How the model is trained.
            batch_size: The number of samples in each micro-batch.
        """
        while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = optimizer.optimizer
        self._model, self._optimizer, self._batch_size = model, optimizer, batch_size
        self._recipe = recipe.model_copy(update={"warmup": 1, "steps": self._steps - 1, **sharing(model)})
        self._device = next(model.parameters()).device
        labels = Labeller(model)
        self._meter = Meter(self._device, living_tensors(model, optimizer, self._device))
        self._session = Session(self._meter.mark, self._meter.begin_phase)
        self._session.built(lambda: labels, lambda labels: self._meter.mark(labels.optimizer_state(optimizer)))
        self._meter.start()
        self.recording = True
        for handle in (
            model.register_forward_pre_hook(self._on_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward),
        ):
            self.hooks.callback(handle.remove)

    @_harmless
    def begin_step(self) -> None:
        """Begin an optimizer step with the batch phase, which lasts until the model's forward is called."""
        self._session.number += 1
        self._meter.begin_step()
        if self._session.number == self._steps:
            self._follow()
        self._began = time.perf_counter()
        self._session.begin_phase("batch")

    @_harmless
    def begin_phase(self, phase: str) -> None:
        """Begin a phase, one of `memprof.training.step.PHASES`."""
        if self._session.phase != phase:
            self._session.begin_phase(phase)

    @_harmless
    def end_step(self) -> None:
        """End a step. The end of the last step to record ends the recording and saves the document."""
        self._meter.synchronize()
        if 1 < self._session.number < self._steps:
            self._seconds.append(time.perf_counter() - self._began)
        if self._session.number == self._steps:
            self._session.end_phase()
            self._finish()

    @_harmless
    def end(self) -> None:
        """Save the recording if the training ended before all steps were recorded."""
        self._finish()

    def _on_forward(self, model: nn.Module, args: Any, keywords: Any) -> None:
        if model.training and self.recording:
            if self._session.number == self._steps:
                self._session.mark_inputs((args, keywords))
            self.begin_phase("forward")

    def _after_forward(self, model: nn.Module, args: Any, output: Any) -> None:
        if model.training:
            self.begin_phase("backward")

    def _follow(self) -> None:
        """Begin to record operators, modules and the labels of tensors, for the last step."""
        self._meter.begin_attribution()
        self._session.follow()
        if not compiled_graphs():
            self.hooks.enter_context(followed_modules(self._model, self._meter.mark))

    def _finish(self) -> None:
        self.recording = False
        self.hooks.close()
        reading = self._meter.finish()
        self._document(self._run(reading)).save(self._path)

    def _run(self, reading: Reading) -> Run:
        state = measure_state(self._optimizer, self._model.parameters())
        parameters = count_parameters(self._model.parameters())
        return Run(
            optimizer=self._describe(reading),
            device=str(self._device),
            status="ok",
            parameters=parameters,
            state=state_figures(state, parameters),
            peak=reading.peak,
            breakdown=reading.breakdown,
            phases=reading.phases,
            steps=Steps(seconds=self._seconds, losses=[], allocated_bytes=reading.step_peaks),
            timeline=reading.timeline,
            rank=dist.get_rank() if self._recipe.world_size > 1 else None,
            notes=[*reading.notes, _NOTE, *([_ONE_RANK] if self._recipe.world_size > 1 else [])],
        )

    def _describe(self, reading: Reading) -> OptimizerInfo:
        kind = type(self._optimizer)
        known = kind.__module__.startswith("torch.optim.")
        name = kind.__name__.lower() if known else kind.__name__
        plain = {k: v for k, v in self._optimizer.defaults.items() if isinstance(v, (bool, int, float, str))}
        return OptimizerInfo(
            spec=name if known else f"{kind.__module__}:{kind.__qualname__}",
            name=name,
            options=plain,
            implementation=implementation_name(self._optimizer, reading.operators.get("optimizer", set())),
        )

    def _document(self, run: Run) -> Comparison:
        name = type(self._model).__name__
        device = str(self._device)
        return Comparison(
            environment=describe_environment(None, device),
            workload=WorkloadInfo(model=name, name=name, knobs={}, batch_size=self._batch_size),
            recipe=self._recipe,
            capacity=Capacity(bytes=device_memory_bytes(device), source="device"),
            runs=[run],
        )
