"""What a worker process is asked to do, and what it answers; plain data, sent as JSON."""

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
    """One (workload, optimizer, device, recipe): what one worker process trains.

    Attributes:
        purpose: `measure` fills a row of the comparison; `fit` and `confirm` need the allocator's peaks only.
        limit_bytes: memory that the trial may allocate, enforced; None for no limit.
        trace_folder: where to write the whole trace (`memprof.export`), of several ranks that of the first; None for
            not at all.
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
    """One workload and several optimizers on a simulated device: predicted together, from one forward and backward.

    `capacity_bytes` takes the place of the device's memory, for a smaller card; `timeline` asks for each run's,
    and `trace_folder` is where to write the whole traces. `steps` are those to predict, if not given as many as what is
    reserved needs to come to rest.
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
    """One (script, optimizer, device): what one worker process runs, measured.

    Attributes:
        steps: training steps to run; None for as many as it takes until two in a row allocate alike.
        timeout_s: how long the script may take.
        answers: what values that the prediction does not know are to be, by `FILE:LINE`.
        output: the file that takes what the script prints; None for stderr.
        keep_outputs: leave what the script saves where it saves it.
        limit_bytes: memory that the trial may allocate; of a prediction what the device has. None for no other limit
            than the device's own.
        trace_folder: where to write the whole trace; None for not at all.
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


class ScriptForecast(ScriptTrial):
    """The same, predicted for a device that need not be here."""

    job: Literal["script-forecast"] = "script-forecast"  # type: ignore[assignment]


class ScriptInquiry(_Message):
    """Check what can be checked of a script without running it, and describe the machine."""

    job: Literal["script-inquiry"] = "script-inquiry"
    script: ScriptSpec
    substitutions: list[Substitution]
    device: str
    command: str | None = None


class FitForecast(_Message):
    """Find the largest value of a knob by predicting: for each optimizer on each device, from shared traces.

    Attributes:
        device: any of the devices; all have the same kernels.
        capacities: the memory of each device, in bytes.
        present: the value of the knob that the user trains with.
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
    """Say what a training would take with each optimizer and each setting of the allocator, from one trace.

    Attributes:
        capacity_bytes: what there is of the device.
        confs: settings of the caching allocator, None for those of the environment.
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
        devices: `--device` names, of which the environment describes the first.
        world_size: ranks that share a CPU's memory.
    """

    job: Literal["inquiry"] = "inquiry"
    workload: WorkloadSpec
    optimizers: list[OptimizerSpec]
    devices: list[str]
    world_size: int = 1
    command: str | None = None


class DeviceFact(_Message):
    """What a `--device` name means, as it is resolved once for a command.

    Attributes:
        name: with its number, or the catalog's.
        simulated: it is to be predicted for.
        memory_bytes: of the device; each rank on the CPU has its share of the machine's memory.
        capacity_bytes: what training can allocate: of a GPU the memory beside the context, and what is free here.
        kernels: the same for two devices on which a training makes the same requests.
    """

    name: str
    simulated: bool
    memory_bytes: int
    capacity_bytes: int
    kernels: str


class Findings(_Message):
    """The answer to an inquiry.

    Attributes:
        devices: what the inquiry's names mean, in their order.
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
        """The first device, which is the only one of a comparison."""
        return self.devices[0]

    def workload_info(self, workload: WorkloadSpec, batch_size: int) -> WorkloadInfo:
        """Return what a result says of the workload that was inquired about."""
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
    """The answer to an inquiry about a script; the attributes are those of `Findings`."""

    kind: Literal["script"] = "script"
    environment: Environment
    device: DeviceFact


class FitFound(_Message):
    """One cell of a fit forecast: its number, optimizers within capacities, and the answer or why there is none."""

    cell: int
    answer: FitAnswer | None = None
    reason: str | None = None


class FitMatrix(_Message):
    """The answer to a fit forecast, after every cell was told of.

    Attributes:
        evaluations: values that were traced.
        refused: values that the workload does not take.
    """

    kind: Literal["fit"] = "fit"
    evaluations: int
    refused: list[int]


class Weight(_Message):
    """What a training takes.

    Attributes:
        bytes: the most at once, of a device without an end; None where it cannot be predicted.
        fits: it stays within the capacity.
        phase: that sets the peak, or in which the memory runs out.
        held: bytes by category at the peak of the blocks in use.
        held_phase: the phase of that.
        reason: why there is nothing.
    """

    bytes: int | None = None
    fits: bool = False
    phase: str = ""
    held: dict[str, int] = {}
    held_phase: str = ""
    reason: str | None = None


class Weights(_Message):
    """The answer to a weighing: by optimizer, one for each setting of the allocator."""

    kind: Literal["weights"] = "weights"
    weights: list[list[Weight]]


class Step(_Message):
    """A worker's sign of life; `label` says what it is about, if more than the trial, and `found` what is finished."""

    kind: Literal["step"] = "step"
    stage: Literal["build", "step"]
    step: int = 0
    steps: int = 0
    peak_bytes: int | None = None
    label: str = ""
    found: FitFound | None = None


class Outcome(_Message):
    """The end of a trial.

    Attributes:
        run: its figures.
        levels: that a fit extrapolates (`memprof.measurement.meter.Reading`).
        phase: of a script that ran out of memory, where.
    """

    kind: Literal["outcome"] = "outcome"
    run: Run
    levels: dict[str, list[int]] = {}
    phase: str | None = None


class Outcomes(_Message):
    """The answer to a forecast, one outcome for each optimizer."""

    kind: Literal["outcomes"] = "outcomes"
    outcomes: list[Outcome]


class Mistake(_Message):
    """A user's mistake, or an internal error, found by the worker; `message` is what to tell the user."""

    kind: Literal["mistake"] = "mistake"
    message: str
    exit_code: int


Job = Annotated[
    Trial | Forecast | ScriptTrial | ScriptForecast | ScriptInquiry | FitForecast | Weighing | Inquiry,
    Field(discriminator="job"),
]
Answer = Findings | ScriptFindings | Outcome | Outcomes | FitMatrix | Weights
