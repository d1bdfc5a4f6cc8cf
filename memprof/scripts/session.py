"""Follows a script: numbers its training steps, labels what its tensors hold, and ends it after the last step."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from memprof.scripts.cycles import Cycles
from memprof.scripts.optimizers import ScriptOptimizers
from memprof.scripts.phases import Phases
from memprof.scripts.stopping import ScriptStopped
from memprof.trace.events import Entry, LabelMark, Mark, OperatorBegin, PhaseMark
from memprof.trace.storages import nested_tensors
from memprof.training.build import bucket_sizes
from memprof.training.labels import Labeller, label_tensors
from memprof.training.session import Session


class Observer(Protocol):
    """The recorder of a script, for a prediction or a measurement."""

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next."""

    def quiet(self) -> AbstractContextManager[Any]:
        """Return a context for work that is not part of the script."""

    def model_found(self, name: str, model: nn.Module) -> None:
        """The script calls a model for the first time; `name` is the prefix of the names of its modules."""

    def step_ended(self, number: int) -> bool:
        """A training step has ended. Return whether it was the last one."""

    def finished(self) -> None:
        """The last step has ended, and all its objects are still alive."""


class Together:
    """Several optimizers that are treated as one."""

    def __init__(self, optimizers: dict[int, torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers


class OptimizersInUse:
    """The optimizers that have stepped in a script. This object does not keep them alive."""

    def __init__(self) -> None:
        self._found: dict[int, weakref.ref[torch.optim.Optimizer]] = {}

    def add(self, optimizer: torch.optim.Optimizer) -> None:
        """Add an optimizer, unless it is already known."""
        known = self._found.get(id(optimizer))
        if known is None or known() is not optimizer:  # an optimizer that is gone may have had the same `id()`
            self._found[id(optimizer)] = weakref.ref(optimizer)

    @property
    def optimizers(self) -> dict[int, torch.optim.Optimizer]:
        """The optimizers that are still alive, in the order of their first steps, by their `id()`."""
        found = {key: reference() for key, reference in self._found.items()}
        return {key: optimizer for key, optimizer in found.items() if optimizer is not None}

    @property
    def together(self) -> Together:
        """All optimizers that are still alive, as one."""
        return Together(self.optimizers)

    def parameters(self) -> list[torch.Tensor]:
        """Return the parameters that the optimizers train, each once."""
        given = (p for one in self.optimizers.values() for group in one.param_groups for p in group["params"])
        return list({id(p): p for p in given}.values())


class ScriptSession:
    """Follows a script while it runs.

    Args:
        observer: The recorder of the script.
        labelling: Whether the contents of tensors are labelled from the first step on.

    Attributes:
        cycles: The counter of the training steps.
        in_use: The optimizers that have stepped.
        ended: Whether the last step has ended.
        seen: The phases that have begun.
        alike: Whether the last step allocated the same sizes as the one before it. The observer sets it.
        optimizers: The optimizers that the script constructs. The caller that runs the script sets it.
    """

    optimizers: ScriptOptimizers

    def __init__(self, observer: Observer, *, labelling: bool) -> None:
        self._observer = observer
        self.cycles = Cycles()
        self.in_use = OptimizersInUse()
        self.ended = False
        self.seen: set[str] = set()
        self.alike = True
        self._models: list[tuple[str, weakref.ref[nn.Module]]] = []
        self._known: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._replicated: list[weakref.ref[nn.Module]] = []
        self.phases = Phases(self)
        self._session = Session(observer.mark, self._mark_phase, aside=observer.quiet)
        self._session.built(
            lambda: Labeller(self.whole_model()),
            lambda labels: observer.mark(labels.optimizer_state(self.in_use.together)),
        )
        self.labelling = labelling

    @property
    def labelling(self) -> bool:
        """Whether tensors are being labelled."""
        return self._session.following

    @labelling.setter
    def labelling(self, follows: bool) -> None:
        self._session.following = follows

    @property
    def phase(self) -> str:
        """The phase that the script is in."""
        return self.phases.current

    @property
    def step(self) -> int:
        """The training step that the script is in, counted from 1."""
        return self.cycles.count + 1

    @property
    def optimizers_waiting(self) -> bool:
        """Whether an optimizer that the script constructed is alive and has not stepped yet."""
        stepped = self.in_use.optimizers
        return any(id(optimizer) not in stepped for optimizer in self.optimizers.made)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow what the script does within the `with` block."""
        with self.phases.followed():
            yield

    @property
    def models(self) -> list[tuple[str, nn.Module]]:
        """The called models that are still alive, each with the prefix of its modules' names."""
        found = [(name, reference()) for name, reference in self._models]
        return [(name, model) for name, model in found if model is not None]

    def bucket_sizes(self) -> list[int]:
        """Return the sizes in bytes of the buckets in which DDP reduces gradients."""
        found = [reference() for reference in self._replicated]
        return [size for model in found if model is not None for size in bucket_sizes(model)]

    def whole_model(self) -> nn.Module:
        """Return one module that holds all models under their names, and the trained parameters outside of them."""
        return _together(self.models, self.in_use.parameters())

    def parameters(self) -> list[torch.Tensor]:
        """Return the parameters of the called models and all others that the optimizers train, each once."""
        found = [p for _, model in self.models for p in model.parameters()]
        return list({id(p): p for p in [*found, *self.in_use.parameters()]}.values())

    # The following methods are called by `Phases`.

    def phase_begins(self, phase: str) -> None:
        """Number the phase, and label the tensors that the phase before it has created."""
        self._stop_again()
        if phase in ("forward", "backward", "optimizer"):
            self.cycles.begin()
        self.seen.add(phase)
        self._session.number = self.cycles.slot
        self._session.begin_phase(phase)

    def forward_begins(self, module: nn.Module, given: Any) -> None:
        """Add a model that was not called before, and label its inputs."""
        if module not in self._known:
            self._add(module)
        if self.labelling and not self.ended:
            with self._observer.quiet():
                self._session.mark_inputs([tensor for tensor in nested_tensors(given) if not tensor.requires_grad])

    def loss_is_known(self, value: Any) -> None:
        """Label the loss."""
        if self.labelling and not self.ended:
            with self._observer.quiet():
                self._observer.mark(label_tensors("activations", value))

    def optimizer_steps(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the optimizer to those in use."""
        self._stop_again()
        self.in_use.add(optimizer)

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Count a training step if one ends here, and end the script after the last one.

        Raises:
            ScriptStopped: The last training step has ended.
        """
        if self.ended:
            return
        if not self.cycles.stepped(id(optimizer)):
            return
        if self._session.phase == "optimizer":  # the step of a gradient scaler around it goes on
            self._session.end_phase()
        if self._observer.step_ended(self.cycles.count):
            self.ended = True
            self._observer.finished()
            raise ScriptStopped
        if self.labelling:
            self._session.follow()

    def tidied(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return the recorded stream with the numbers of training steps. A single model's modules lose their prefix."""
        numbered = self.cycles.renumbered(entries)
        if len(self._models) != 1:
            return numbered
        prefix = self._models[0][0]
        return [_without_prefix(entry, prefix) for entry in numbered]

    # The following methods are helpers.

    def _mark_phase(self, slot: int, phase: str) -> None:
        self._observer.mark(PhaseMark(slot, phase))

    def _stop_again(self) -> None:
        """Raise `ScriptStopped` once more if the script has ended and caught the first one."""
        if self.ended:
            raise ScriptStopped

    def _add(self, module: nn.Module) -> None:
        within = {id(part) for part in module.modules()}
        self._models = [(name, ref) for name, ref in self._models if (old := ref()) is None or id(old) not in within]
        taken = {name for name, _ in self._models}
        self._known.add(module)
        if isinstance(module, DistributedDataParallel):
            self._replicated.append(weakref.ref(module))
            module = module.module  # the user's own model
        name = type(module).__name__
        if name in taken:
            name = next(f"{name}_{number}" for number in range(2, 1 << 30) if f"{name}_{number}" not in taken)
        self._models.append((name, weakref.ref(module)))
        self._known.update(module.modules())
        self._observer.model_found(name, module)

    def label_what_lives(self) -> None:
        """Label every tensor that Python holds, because no operator has created those that are loaded or copied."""
        held = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
        self._observer.mark(label_tensors("", held))


def _together(models: list[tuple[str, nn.Module]], trained: list[torch.Tensor]) -> nn.Module:
    """Return one module that holds all models and the trained parameters outside of them."""
    inside = {id(p) for _, model in models for p in model.parameters()}
    whole = nn.Module()
    whole._modules.update(models)
    loose = [p for p in trained if id(p) not in inside]
    whole._parameters.update({f"parameter_{number}": p for number, p in enumerate(loose)})  # type: ignore[misc]
    return whole


def _without_prefix(entry: Entry, prefix: str) -> Entry:
    if isinstance(entry, OperatorBegin) and entry.module:
        return entry._replace(module=_name_within(entry.module, prefix))
    if isinstance(entry, LabelMark):
        return entry._replace(modules={key: _name_within(name, prefix) for key, name in entry.modules.items()})
    return entry


def _name_within(name: str, prefix: str) -> str:
    return "" if name == prefix else name.removeprefix(f"{prefix}.")
