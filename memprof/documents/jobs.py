"""The jobs that a worker process is given, and its answers. All are plain data, sent as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from memprof.documents.comparison import Environment, FitAnswer, Lengths, Run, WorkloadInfo
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.documents.recipe import Recipe
from memprof.documents.script import ScriptSpec, Substitution
from memprof.documents.vary import Vary
from memprof.documents.workload_spec import WorkloadSpec

Purpose = Literal["measure", "fit", "confirm", "predict"]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(_Message):
    """A training of one workload with one optimizer on one device, which a worker process measures.

    Attributes:
        workload: The model and its batches.
        optimizer: The optimizer.
        device: The name of the device, with its number.
        batch_size: The samples of a micro-batch.
        recipe: How to train.
        purpose: `measure` fills a row of the comparison; `fit` and `confirm` need only the allocator's peaks.
        limit_bytes: The bytes that the trial may allocate, which is enforced; None for no limit.
        trace_folder: The folder that takes the whole trace (`memprof.export`), with several ranks that of the first;
            None to write no trace.
    """

    job: Literal["trial"] = "trial"
    workload: WorkloadSpec
    optimizer: OptimizerSpec
    device: str
    batch_size: int
    recipe: Recipe
    purpose: Purpose = "measure"
    limit_bytes: int | None = None
    trace_folder: str | None = None


class Forecast(_Message):
    """A prediction of one workload with several optimizers, which share one simulated forward and backward pass.

    Attributes:
        workload: The model and its batches.
        optimizers: The optimizers.
        device: The name of the device.
        batch_size: The samples of a micro-batch.
        recipe: How to train.
        capacity_bytes: The bytes that the training may allocate, in place of the device's memory; None for the
            device's memory.
        timeline: Whether each run carries its timeline.
        trace_folder: The folder that takes the whole traces; None to write no traces.
        steps: The number of steps to predict; None for as many as the reserved memory needs to stop growing.
    """

    job: Literal["forecast"] = "forecast"
    workload: WorkloadSpec
    optimizers: list[OptimizerSpec]
    device: str
    batch_size: int
    recipe: Recipe
    capacity_bytes: int | None = None
    timeline: bool = False
    trace_folder: str | None = None
    steps: int | None = None


class ScriptTrial(_Message):
    """A training script with one optimizer on one device, which a worker process runs and measures.

    Attributes:
        script: The script and its arguments.
        substitution: The optimizer that takes the place of the script's own.
        device: The name of the device.
        steps: The number of training steps to run; None to run until two steps in a row allocate the same.
        timeout_s: The seconds after which the script is stopped.
        answers: For values that a prediction cannot know, the value to assume, by `FILE:LINE`.
        output: The file that takes what the script prints; None for stderr.
        keep_outputs: Whether files that the script saves stay where it saves them.
        limit_bytes: The bytes that the trial may allocate; for a prediction, the memory of the device. None for no
            limit beside the device's own.
        trace_folder: The folder that takes the whole trace; None to write no trace.
        world_size: The number of ranks that the script is started on, as by torchrun; None to start it as it is.
        rank: The rank that is predicted, or whose figures are shown of those measured; None for the first, or for the
            one with the highest peak.
    """

    job: Literal["script"] = "script"
    script: ScriptSpec
    substitution: Substitution
    device: str
    steps: int | None = None
    timeout_s: float
    answers: dict[str, bool | int | float] = {}
    output: str | None = None
    keep_outputs: bool = False
    limit_bytes: int | None = None
    trace_folder: str | None = None
    world_size: int | None = None
    rank: int | None = None


class ScriptForecast(ScriptTrial):
    """The same as `ScriptTrial`, but predicted, for a device that need not be present."""

    job: Literal["script-forecast"] = "script-forecast"  # type: ignore[assignment]


class ScriptInquiry(_Message):
    """Check a script as far as possible without running it, and describe the machine.

    Attributes:
        script: The script and its arguments.
        substitutions: The optimizers that take the place of the script's own, one after another.
        device: The `--device` name.
        command: The command line, for the environment; None if there is none.
    """

    job: Literal["script-inquiry"] = "script-inquiry"
    script: ScriptSpec
    substitutions: list[Substitution]
    device: str
    world_size: int | None = None
    command: str | None = None


class FitForecast(_Message):
    """A search by prediction for the largest value of a knob, for each optimizer and device, from shared traces.

    Attributes:
        workload: The model and its batches.
        optimizers: The optimizers.
        recipe: How to train.
        batch_size: The samples of a micro-batch.
        vary: The knob and the values to try.
        present: The value of the knob that the user trains with now.
        device: The name of one of the devices; all of them have the same kernels.
        capacities: The memory of each device, in bytes.
    """

    job: Literal["fit"] = "fit"
    workload: WorkloadSpec
    optimizers: list[OptimizerSpec]
    recipe: Recipe
    batch_size: int
    vary: Vary
    present: int
    device: str
    capacities: list[int]


class Weighing(_Message):
    """A prediction of the memory that a training takes with each optimizer and each allocator setting, from one trace.

    Attributes:
        workload: The model and its batches.
        optimizers: The optimizers.
        recipe: How to train.
        batch_size: The samples of a micro-batch.
        device: The name of the device.
        capacity_bytes: The bytes that a training may allocate on the device.
        confs: The settings of the caching allocator, as in `PYTORCH_ALLOC_CONF`; None for those of the environment.
    """

    job: Literal["weigh"] = "weigh"
    workload: WorkloadSpec
    optimizers: list[OptimizerSpec]
    recipe: Recipe
    batch_size: int
    device: str
    capacity_bytes: int
    confs: list[str | None]


class Inquiry(_Message):
    """Check the arguments and describe the workload, the devices and the machine, without training.

    Attributes:
        workload: The model and its batches.
        optimizers: The optimizers.
        devices: The `--device` names. The environment describes the first.
        world_size: The number of ranks, which share the memory of a CPU.
        command: The command line, for the environment; None if there is none.
    """

    job: Literal["inquiry"] = "inquiry"
    workload: WorkloadSpec
    optimizers: list[OptimizerSpec]
    devices: list[str]
    world_size: int = 1
    command: str | None = None


class DeviceFact(_Message):
    """The device that a `--device` name means. A command resolves each name once.

    Attributes:
        name: The name with its number, as in `cuda:0`, or the name in the catalog.
        simulated: Whether the device is simulated, so that its memory is predicted.
        memory_bytes: The memory of the device; with several ranks on the CPU, each rank's share of the machine's.
        capacity_bytes: The bytes that a training can allocate: on a GPU the memory without the CUDA context, and on
            this machine only what is free.
        kernels: An identifier that two devices share if a training makes the same requests on both.
    """

    name: str
    simulated: bool
    memory_bytes: int
    capacity_bytes: int
    kernels: str


class Findings(_Message):
    """The answer to an inquiry.

    Attributes:
        environment: The machine and its software.
        devices: The devices that the inquiry's names mean, in the same order.
        name: The name of the workload.
        knobs: The knobs of the workload with their values.
        scale: The knob that scales the model; None if there is none.
        lengths: What is known about the lengths of the samples.
        positions: The longest sample that the model takes; None if it does not say.
    """

    kind: Literal["findings"] = "findings"
    environment: Environment
    devices: list[DeviceFact]
    name: str
    knobs: dict[str, Any]
    scale: str | None
    lengths: Lengths
    positions: int | None

    @property
    def device(self) -> DeviceFact:
        """The first device, which is the only one in a comparison."""
        return self.devices[0]

    def workload_info(self, workload: WorkloadSpec, batch_size: int) -> WorkloadInfo:
        """Return the description of the workload that a document carries.

        Args:
            workload: The workload of the inquiry.
            batch_size: The samples of a micro-batch.
        """
        return WorkloadInfo(
            model=workload.model,
            name=self.name,
            knobs=self.knobs,
            batch_size=batch_size,
            inputs=workload.inputs,
            target=workload.target,
            scale=self.scale,
            lengths=self.lengths,
            positions=self.positions,
        )


class ScriptFindings(_Message):
    """The answer to an inquiry about a script. The attributes mean the same as those of `Findings`."""

    kind: Literal["script"] = "script"
    environment: Environment
    device: DeviceFact


class FitFound(_Message):
    """The outcome for one cell of a `FitForecast`.

    Attributes:
        cell: The number of the cell. The optimizers of the first capacity come first, then those of the next.
        answer: The answer; None if there is none.
        reason: Why there is no answer; None if there is one.
    """

    cell: int
    answer: FitAnswer | None = None
    reason: str | None = None


class FitMatrix(_Message):
    """The answer to a `FitForecast`. It follows the `Step` messages that carry the cells.

    Attributes:
        evaluations: How many values were traced.
        refused: The values that the workload does not accept.
    """

    kind: Literal["fit"] = "fit"
    evaluations: int
    refused: list[int]


class Weight(_Message):
    """The memory that a training takes.

    Attributes:
        bytes: The peak in bytes on a device with unlimited memory; None if it cannot be predicted.
        fits: Whether the training stays within the capacity.
        phase: The phase that sets the peak, or in which the memory runs out.
        held: The bytes of each category when the most memory is allocated.
        held_phase: The phase in which the most memory is allocated.
        reason: Why there is no prediction; None if there is one.
    """

    bytes: int | None = None
    fits: bool = False
    phase: str = ""
    held: dict[str, int] = {}
    held_phase: str = ""
    reason: str | None = None


class Weights(_Message):
    """The answer to a `Weighing`: for each optimizer, one weight for each setting of the allocator."""

    kind: Literal["weights"] = "weights"
    weights: list[list[Weight]]


class Step(_Message):
    """A message on a worker's progress.

    Attributes:
        stage: `build` before the first training step, else `step`.
        step: The number of the step, from 1.
        steps: The number of steps in all.
        peak_bytes: The highest memory use so far; None if it is not known.
        phase: Of a script: the phase that it is in; empty at the end of a step.
        label: What the worker is working on, if that is more than the trial itself.
        found: A finished cell of a `FitForecast`; None if no cell has been finished.
    """

    kind: Literal["step"] = "step"
    stage: Literal["build", "step"]
    step: int = 0
    steps: int = 0
    peak_bytes: int | None = None
    phase: str = ""
    label: str = ""
    found: FitFound | None = None


class Outcome(_Message):
    """The answer to a trial.

    Attributes:
        run: The run of the optimizer.
        levels: For each phase, the bytes that a search extrapolates (`memprof.measurement.meter.Reading`).
        phase: Of a script that ran out of memory: the phase in which it did.
    """

    kind: Literal["outcome"] = "outcome"
    run: Run
    levels: dict[str, list[int]] = {}
    phase: str | None = None


class Outcomes(_Message):
    """The answer to a `Forecast`, with one outcome for each optimizer."""

    kind: Literal["outcomes"] = "outcomes"
    outcomes: list[Outcome]


class Mistake(_Message):
    """A mistake of the user, or an internal error, that a worker found.

    Attributes:
        message: The sentence to tell the user.
        exit_code: The exit code of the command.
    """

    kind: Literal["mistake"] = "mistake"
    message: str
    exit_code: int


Job = Annotated[
    Trial | Forecast | ScriptTrial | ScriptForecast | ScriptInquiry | FitForecast | Weighing | Inquiry,
    Field(discriminator="job"),
]
Answer = Findings | ScriptFindings | Outcome | Outcomes | FitMatrix | Weights
