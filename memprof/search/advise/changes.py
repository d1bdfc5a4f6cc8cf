"""The changes with which a user can save memory, and how much each of them disturbs the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import combinations

from pydantic import ValidationError

from memprof.documents.optimizer_spec import OptimizerSpec, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.training.micro_batches import traced

MICRO_BATCH, IN_BACKWARD = "micro-batch", "step-in-backward"
EXPANDABLE = "expandable_segments:True"
# Optimizers of torch.optim by their names in memprof's registry. Fused Adagrad is left out on GPUs, because the oldest
# supported PyTorch does not have it there.
FUSED = frozenset({"adam", "adamw", "sgd", "adagrad"})
FUSED_ON_CUDA = FUSED - {"adagrad"}
FOREACH = FUSED | {"adadelta", "adafactor", "adamax", "asgd", "nadam", "radam", "rmsprop", "rprop"}
_EIGHT_BIT = {"bitsandbytes": "bitsandbytes.optim:AdamW8bit", "torchao": "torchao.optim:AdamW8bit"}


@dataclass(frozen=True)
class TrainingSetup:
    """The settings of a training that a change may alter.

    Attributes:
        optimizer: The optimizer.
        recipe: The training recipe.
        batch_size: The batch size of each micro-batch.
        conf: The settings of the caching allocator; None for those of the environment.
    """

    optimizer: OptimizerSpec
    recipe: Recipe
    batch_size: int
    conf: str | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """A key that is equal for equal setups."""
        return self.optimizer.text, self.recipe.model_dump_json(), str(self.batch_size), str(self.conf)

    @property
    def traced_recipe(self) -> Recipe:
        """The recipe to trace, with only as many micro-batches as a trace needs to show them all."""
        return traced(self.recipe)


@dataclass(frozen=True)
class SetupChange:
    """One change to a training setup.

    Attributes:
        name: The name of the change in the report.
        how: The command-line options that make the change.
        effect: What the change does to the training.
        disturbance: How much the change disturbs the training: 0 not at all, 1 the same result in more time, 2 other
            rounding, 3 another optimizer.
        part: The part of the setup that is changed. Two changes of the same part exclude each other.
        apply: Returns the changed setup.
    """

    name: str
    how: str
    effect: str
    disturbance: int
    part: str
    apply: Callable[[TrainingSetup], TrainingSetup]


def possible_changes(setup: TrainingSetup, cuda: bool) -> list[SetupChange]:
    """Return every change that can be made to a setup.

    Args:
        setup: The present setup.
        cuda: Whether it trains on a GPU, with PyTorch's caching allocator.
    """
    found = [*_implementations(setup, cuda), *_recipes(setup), *_micro_batches(setup), *_optimizers(setup)]
    if cuda:
        found.append(_expandable())
    return [change for change in found if _is_valid(change.apply(setup).recipe)]


def _is_valid(recipe: Recipe) -> bool:
    """Return whether the options of a changed recipe can be combined."""
    try:
        Recipe.model_validate(recipe.model_dump())
    except ValidationError:
        return False
    return True


def combinations_of(changes: Sequence[SetupChange]) -> list[tuple[SetupChange, ...]]:
    """Return the pairs and triples of changes that can be combined; only the smallest micro-batch takes part."""
    sizes = [change for change in changes if change.part == MICRO_BATCH]
    chosen = [change for change in changes if change not in sizes[:-1]]
    found = [group for count in (2, 3) for group in combinations(chosen, count)]
    return [group for group in found if _compatible({change.part for change in group}, len(group))]


def _compatible(parts: set[str], count: int) -> bool:
    return len(parts) == count and not {MICRO_BATCH, IN_BACKWARD} <= parts


def _recipe_change(name: str, how: str, effect: str, disturbance: int, **update: object) -> SetupChange:
    def apply(setup: TrainingSetup) -> TrainingSetup:
        return replace(setup, recipe=setup.recipe.model_copy(update=update))

    return SetupChange(name, how, effect, disturbance, name, apply)


def _recipes(setup: TrainingSetup) -> Iterator[SetupChange]:
    recipe = setup.recipe
    if recipe.zero_grad != "after-step":
        effect = "the same training: gradients are dropped as soon as the step is done"
        yield _recipe_change("zero_grad", "--zero-grad after-step", effect, 0, zero_grad="after-step")
    if recipe.strategy == "ddp":
        effect = "the same update: parameters, gradients and state in shards, gathered when they are needed"
        yield _recipe_change("fsdp", "--strategy fsdp", effect, 1, strategy="fsdp")
    if not recipe.checkpoint_activations:
        effect = "the same numbers: the blocks' forward pass runs twice"
        option = "--checkpoint-activations"
        yield _recipe_change("activation checkpointing", option, effect, 1, checkpoint_activations=True)
    stepped = recipe.step_in_backward or recipe.accumulate > 1 or recipe.clip_grad is not None
    if not stepped and recipe.precision != "amp-fp16":
        effect = "the same update: no clipping of the total norm, no accumulation"
        yield _recipe_change(IN_BACKWARD, "--step-in-backward", effect, 1, step_in_backward=True)
    if recipe.precision == "fp32":
        effect = "products in bfloat16, weights and state in float32"
        yield _recipe_change("amp-bf16", "--precision amp-bf16", effect, 2, precision="amp-bf16")


def _micro_batches(setup: TrainingSetup) -> Iterator[SetupChange]:
    """Yield smaller micro-batches: a half, a quarter and the smallest, as many as keep the samples of each step."""
    if setup.recipe.step_in_backward:
        return
    halves = [setup.batch_size >> times for times in range(1, 20) if setup.batch_size % (1 << times) == 0]
    for size in dict.fromkeys([*halves[:2], *halves[-1:]]):
        yield _accumulation(size, setup.recipe.accumulate * setup.batch_size // size)


def _accumulation(size: int, times: int) -> SetupChange:
    def apply(setup: TrainingSetup) -> TrainingSetup:
        recipe = setup.recipe.model_copy(update={"accumulate": times})
        return replace(setup, recipe=recipe, batch_size=size)

    effect = "the same gradients in smaller pieces; batch norm sees the pieces"
    return SetupChange(
        f"micro-batch {size} x {times}", f"-b {size} --accumulate {times}", effect, 1, MICRO_BATCH, apply
    )


def _expandable() -> SetupChange:
    how = f"PYTORCH_ALLOC_CONF={EXPANDABLE}"
    part = "expandable segments"
    return SetupChange(part, how, "the same training", 0, part, lambda setup: replace(setup, conf=EXPANDABLE))


def _optimizer_change(name: str, spec: str, effect: str, disturbance: int) -> SetupChange:
    parsed = parse_optimizer(spec)
    return SetupChange(
        name, f"-o {parsed.text}", effect, disturbance, "optimizer", lambda s: replace(s, optimizer=parsed)
    )


def _implementations(setup: TrainingSetup, cuda: bool) -> Iterator[SetupChange]:
    """Yield other kernels for the same update: foreach, the default on a GPU, has temporaries as large as the model."""
    spec = setup.optimizer
    plain = ",".join(part for part in spec.text.split(",") if not part.startswith(("foreach=", "fused=")))
    if spec.name in (FUSED_ON_CUDA if cuda else FUSED) and not spec.options.get("fused"):
        yield _optimizer_change(f"fused {spec.name}", f"{plain},fused=true", "the same update in one kernel", 0)
    if spec.name in FOREACH and cuda and spec.options.get("foreach") is not False and not spec.options.get("fused"):
        effect = "the same update, one parameter after the other"
        yield _optimizer_change(f"{spec.name} as a loop", f"{plain},foreach=false", effect, 1)


def _optimizers(setup: TrainingSetup) -> Iterator[SetupChange]:
    spec = setup.optimizer
    again = "another optimizer: its learning rate has to be tuned again"
    if spec.name == "sm3" and spec.options.get("momentum"):
        yield _optimizer_change(
            "sm3 without momentum", "sm3", "no momentum: the learning rate has to be tuned again", 3
        )
    elif spec.name != "sm3":
        yield _optimizer_change("sm3", "sm3", again, 3)
        yield _optimizer_change("sm3 with momentum", "sm3,momentum=0.9", again, 3)
    if spec.name != "adafactor":
        yield _optimizer_change("adafactor", "adafactor", again, 3)
    for package, path in _EIGHT_BIT.items():
        if find_spec(package) is not None and spec.name != path:
            kept = "rounded state" if spec.name in ("adam", "adamw") else again
            yield _optimizer_change(f"8-bit AdamW ({package})", path, f"8-bit state: {kept}", 2 if kept != again else 3)
