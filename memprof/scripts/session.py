"""A script as it goes from step to step: numbers its training steps, labels what its tensors hold, and ends it."""

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
    """Who records the script, predicted or measured."""

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next."""

    def quiet(self) -> AbstractContextManager[Any]:
        """What is done within the `with` block is no part of the script."""

    def model_found(self, name: str, model: nn.Module) -> None:
        """The script calls a model that it has not called before; `name` is a prefix of its modules' names."""

    def step_ended(self, number: int) -> bool:
        """A training step has ended; say whether it was the last."""

    def finished(self) -> None:
        """The last step has ended and everything still lives."""


class Together:
    """Several optimizers as one that holds what all of them hold."""

    def __init__(self, optimizers: dict[int, torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers


class OptimizersInUse:
    """The optimizers that a script has stepped; it does not keep them alive."""

    def __init__(self) -> None:
        self._found: dict[int, weakref.ref[torch.optim.Optimizer]] = {}

    def add(self, optimizer: torch.optim.Optimizer) -> None:
        """Take one in."""
        known = self._found.get(id(optimizer))
        if known is None or known() is not optimizer:  # one that is gone may have had this identity
            self._found[id(optimizer)] = weakref.ref(optimizer)

    @property
    def optimizers(self) -> dict[int, torch.optim.Optimizer]:
        """Those that still live, in the order in which they first stepped."""
        found = {key: reference() for key, reference in self._found.items()}
        return {key: optimizer for key, optimizer in found.items() if optimizer is not None}

    @property
    def together(self) -> Together:
        """All that still live, as one."""
        return Together(self.optimizers)

    def parameters(self) -> list[torch.Tensor]:
        """What they train, each once."""
        given = (p for one in self.optimizers.values() for group in one.param_groups for p in group["params"])
        return list({id(p): p for p in given}.values())


class ScriptSession:
    """Follows a script while it runs.

    Args:
        observer: records it.
        labelling: label what tensors hold, from the first step on.

    Attributes:
        cycles: counts the training steps.
        in_use: the optimizers that have stepped.
        ended: the last step has ended.
        seen: the phases that have begun.
        alike: the last step allocated what the one before it did; set by the observer.
        optimizers: notes what the script constructs; set by whoever runs it.
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
        """Whether tensors are labelled at the moment."""
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
        """The training step that the script is in, from 1."""
        return self.cycles.count + 1

    @property
    def optimizers_waiting(self) -> bool:
        """Whether an optimizer was constructed that has not stepped yet and may still do so."""
        stepped = self.in_use.optimizers
        return any(id(optimizer) not in stepped for optimizer in self.optimizers.made)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow what the script does within the `with` block."""
        with self.phases.followed():
            yield

    @property
    def models(self) -> list[tuple[str, nn.Module]]:
        """The models that the script has called and that still live, with the prefix of their modules' names."""
        found = [(name, reference()) for name, reference in self._models]
        return [(name, model) for name, model in found if model is not None]

    def bucket_sizes(self) -> list[int]:
        """Return the sizes in bytes of the buckets in which DDP reduces gradients."""
        found = [reference() for reference in self._replicated]
        return [size for model in found if model is not None for size in bucket_sizes(model)]

    def whole_model(self) -> nn.Module:
        """Return one module that holds all models, under their names, and what is trained outside of them."""
        return _together(self.models, self.in_use.parameters())

    def parameters(self) -> list[torch.Tensor]:
        """All parameters, each once: of the models that were called, and whatever else the optimizers train."""
        found = [p for _, model in self.models for p in model.parameters()]
        return list({id(p): p for p in [*found, *self.in_use.parameters()]}.values())

    # What `Phases` tells

    def phase_begins(self, phase: str) -> None:
        """Number the phase, and label what the one before it has made."""
        self._stop_again()
        if phase in ("forward", "backward", "optimizer"):
            self.cycles.begin()
        self.seen.add(phase)
        self._session.number = self.cycles.slot
        self._session.begin_phase(phase)

    def forward_begins(self, module: nn.Module, given: Any) -> None:
        """Take in a model that was not called before, and label what it is given."""
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
        """Take in the optimizer."""
        self._stop_again()
        self.in_use.add(optimizer)

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Count a training step if it ends here, and end the script with the last."""
        if self.ended:
            return
        if not self.cycles.stepped(id(optimizer)):
            return
        if self._session.phase == "optimizer":  # a gradient scaler's step goes on around it
            self._session.end_phase()
        if self._observer.step_ended(self.cycles.count):
            self.ended = True
            self._observer.finished()
            raise ScriptStopped
        if self.labelling:
            self._session.follow()

    def tidied(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return the recorded stream with the numbers of training steps, and a single model's own names."""
        numbered = self.cycles.renumbered(entries)
        if len(self._models) != 1:
            return numbered
        prefix = self._models[0][0]
        return [_without_prefix(entry, prefix) for entry in numbered]

    # Parts

    def _mark_phase(self, slot: int, phase: str) -> None:
        self._observer.mark(PhaseMark(slot, phase))

    def _stop_again(self) -> None:
        """A script that catches everything is told once more that it is over."""
        if self.ended:
            raise ScriptStopped

    def _add(self, module: nn.Module) -> None:
        within = {id(part) for part in module.modules()}
        self._models = [(name, ref) for name, ref in self._models if (old := ref()) is None or id(old) not in within]
        taken = {name for name, _ in self._models}
        self._known.add(module)
        if isinstance(module, DistributedDataParallel):
            self._replicated.append(weakref.ref(module))
            module = module.module  # the user's own
        name = type(module).__name__
        if name in taken:
            name = next(f"{name}_{number}" for number in range(2, 1 << 30) if f"{name}_{number}" not in taken)
        self._models.append((name, weakref.ref(module)))
        self._known.update(module.modules())
        self._observer.model_found(name, module)

    def label_what_lives(self) -> None:
        """Say of every tensor that Python holds that it is one: no operator made those that are loaded or copied."""
        held = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
        self._observer.mark(label_tensors("", held))


def _together(models: list[tuple[str, nn.Module]], trained: list[torch.Tensor]) -> nn.Module:
    """Return one module that holds all models, and what is trained outside of them."""
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
