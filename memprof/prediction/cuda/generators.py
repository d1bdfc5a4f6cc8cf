"""Makes random generators of a simulated GPU: CPU generators that claim to be on it and have a state like CUDA's."""

from __future__ import annotations

from typing import Any

import torch

_STATE_BYTES = 16  # the bytes of seed and offset (`CUDAGeneratorImpl::get_state`)


def make_generator_class(cuda: torch.device) -> type[Any]:
    """Return the class that replaces `torch.Generator`.

    Args:
        cuda: The GPU of generators that are made for `"cuda"`.
    """
    original: Any = torch.Generator

    class AnyGenerator(type(original)):  # type: ignore[misc]  # the metaclass is PyTorch's own since 2.10
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, original)

    class Generator(original, metaclass=AnyGenerator):  # type: ignore[misc]  # a class of the running PyTorch
        """A generator on the host, or one that claims to be on the GPU."""

        _place: torch.device | None = None
        _offset = 0

        def __new__(cls, device: Any = "cpu") -> Any:
            wanted = cuda if isinstance(device, int) else torch.device(device)
            made = super().__new__(cls, device="cpu" if wanted.type == "cuda" else wanted)
            if wanted.type == "cuda":
                made._place = cuda
            return made

        @property
        def device(self) -> torch.device:
            return self._place or super().device

        def get_state(self) -> torch.Tensor:
            """Return the seed and the offset. Drawing numbers changes neither, as no prediction depends on it."""
            if self._place is None:
                state: torch.Tensor = super().get_state()
                return state
            numbers = [self.initial_seed() & (2**63 - 1), self._offset]
            return torch.tensor(numbers, dtype=torch.int64, device="cpu").view(torch.uint8)

        def set_state(self, new_state: torch.Tensor) -> Any:
            """Set the seed and the offset."""
            if self._place is None:
                return super().set_state(new_state)
            if new_state.dtype is not torch.uint8 or new_state.numel() != _STATE_BYTES:
                raise RuntimeError("RNG state is wrong size")
            seed, self._offset = new_state.view(torch.int64).tolist()
            self.manual_seed(seed)
            return self

        def get_offset(self) -> int:
            """Return the offset, which counts the numbers drawn."""
            return self._offset

        def set_offset(self, offset: int) -> Any:
            """Set the offset, so that the sequence continues at another place."""
            self._offset = offset
            return self

        def clone_state(self) -> Any:
            """Return a generator in the same state."""
            other = type(self)(self.device)
            other.manual_seed(self.initial_seed())
            other._offset = self._offset
            return other

    return Generator
