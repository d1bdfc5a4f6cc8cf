"""Finds the addresses that hold parameters, buffers, gradients, inputs and optimizer state at the moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from memprof.optimizers.state_bytes import iter_state_storages
from memprof.trace.events import LabelMark
from memprof.trace.storages import data_pointers, nested_tensors


class Labeller:
    """Makes the label marks of a model's training step.

    Args:
        model: The model. Its parameters, buffers and other tensors are labelled with the name of the module that owns
            them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parameters = list(_owned(model, lambda module: module.named_parameters(recurse=False)))

    def parameters(self) -> LabelMark:
        """Return the mark of the parameters. A tied parameter is named after the first module that has it."""
        return _label("parameters", self._parameters)

    def buffers(self) -> LabelMark:
        """Return the mark of the buffers, and of tensors that modules keep as attributes (rotary tables, masks)."""
        owned = []
        for name, module in self._model.named_modules():
            held = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_modules")}
            owned += [(name, tensor) for tensor in nested_tensors(held) if not isinstance(tensor, nn.Parameter)]
        return _label("buffers", owned)

    def gradients(self) -> LabelMark:
        """Return the mark of the gradients that exist now."""
        return _label("gradients", [(name, p.grad) for name, p in self._parameters if p.grad is not None])

    def optimizer_state(self, optimizer: Any) -> LabelMark:
        """Return the mark of all tensors that an optimizer holds.

        What the optimizer keeps for a parameter is named after the module of that parameter.

        Args:
            optimizer: A PyTorch optimizer, or an object whose `optimizers` are several, by parameter.
        """
        owner = {id(parameter): name for name, parameter in self._parameters}
        modules = {
            address: owner[id(key)]
            for part in getattr(optimizer, "optimizers", {None: optimizer}).values()
            for key, value in part.state.items()
            if id(key) in owner
            for address in data_pointers(nested_tensors(value))
        }
        # While a group of FSDP is gathered, the model's parameters are not those of the optimizer.
        own = [*self._model.parameters(), *(parameter for _, parameter in self._parameters)]
        storages = iter_state_storages(optimizer, own)
        addresses = [storage.data_ptr() for storage, _ in storages]
        return LabelMark("optimizer_state", {address: modules.get(address, "") for address in addresses})


def label_tensors(category: str, value: Any) -> LabelMark:
    """Return the mark of tensors that belong to no module.

    Args:
        category: The category that the tensors are labelled with.
        value: A tensor, or a nest of tensors such as a batch.
    """
    return _label(category, [("", tensor) for tensor in nested_tensors(value)])


def _label(category: str, owned: Iterable[tuple[str, Tensor]]) -> LabelMark:
    modules: dict[int, str] = {}
    for name, tensor in owned:
        for address in data_pointers([tensor]):
            modules.setdefault(address, name)
    return LabelMark(category, modules)


def _owned(model: nn.Module, members: Any) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for name, module in model.named_modules():
        for _, tensor in members(module):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor
