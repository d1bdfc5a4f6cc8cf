"""Finds out which phase of its training a script is in, without a change to the script.

| phase | from | to |
|---|---|---|
| build | the start | the first forward that records a graph |
| forward | a module is called outside of any other, while gradients are recorded | the backward pass, or a step |
| backward | `backward()` is called | it returns |
| clip | `clip_grad_norm_` or `clip_grad_value_` | it returns |
| optimizer | an optimizer's `step()`, or the scaler's around it | it returns |
| zero_grad | `zero_grad()` of an optimizer or a module | it returns |
| evaluation | a module is called without gradients, and no training step has begun | gradients are recorded again |
| save, load | `torch.save`, `save_pretrained`; `torch.load`, `load_state_dict` | it returns |
| other | everything between these | |

A training step begins with a forward and ends with an optimizer's step; the work of a frozen model within it is
part of the forward.

Private API of PyTorch, checked on 2.8.0 and 2.13.0: `torch.optim.optimizer.register_optimizer_step_pre_hook` and
`register_optimizer_step_post_hook`, the global module hooks, and that these are called from a frame of
`torch.nn.Module._call_impl` which has the call's keywords under the name `kwargs`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

# These phases begin and end with a call, and everything within the call belongs to the phase. The exceptions are the
# passes of a closure within an optimizer's step, which are phases of their own.
_CALLS = ("backward", "clip", "zero_grad", "save", "load")
BUILD, OTHER = "build", "other"


class Listener(Protocol):
    """An object that is told what the script does."""

    def phase_begins(self, phase: str) -> None:
        """Another phase begins, and the one before it ends."""

    def forward_begins(self, module: nn.Module, given: Any) -> None:
        """A module is called with these arguments, outside of any other module."""

    def loss_is_known(self, value: Any) -> None:
        """The backward pass is about to begin, from these tensors."""

    def optimizer_steps(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step."""

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped."""


class Phases:
    """Tells a listener of every change of phase while it is entered.

    Args:
        listener: The object that is told of each change.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.current = BUILD
        self._rest = BUILD  # the phase that holds between the calls
        self._calls: list[str] = []
        self._depth = 0
        self._training = False  # whether a training step has begun

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow what the script does within the `with` block."""
        with ExitStack() as stack:
            hooks = [
                register_module_forward_pre_hook(self._enter_module),
                register_module_forward_hook(self._leave_module, always_call=True),
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
            ]
            for hook in hooks:
                stack.callback(hook.remove)
            for owner, name, phase in _patched():
                stack.enter_context(patch.object(owner, name, self._within(phase, getattr(owner, name))))
            for owner in (torch.no_grad, torch.inference_mode, torch.set_grad_enabled):
                leave = self._leaving_no_grad(owner.__exit__)
                stack.enter_context(patch.object(owner, "__exit__", leave))
            yield

    def _begin(self, phase: str) -> None:
        if phase != self.current:
            self.current = phase
            self._listener.phase_begins(phase)

    def _settle(self, phase: str) -> None:
        """Begin a phase that lasts until another begins."""
        self._rest = phase
        self._begin(phase)

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        self._depth += 1
        if self._depth > 1 or self.current in _CALLS:
            return
        if torch.is_grad_enabled():
            self._training = True
            self._settle("forward")
        elif not self._training:
            self._settle("evaluation")
        call = sys._getframe(1).f_locals  # PyTorch passes no keyword arguments to a global hook
        self._listener.forward_begins(module, (args, call.get("kwargs")))

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._calls.append("optimizer")
        self._begin("optimizer")
        self._listener.optimizer_steps(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._training = False
        self._end_call("optimizer")
        self._listener.optimizer_stepped(optimizer)

    def _within(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._calls and self._calls[-1] != "optimizer":  # this call is part of the phase that is already running
                return function(*args, **kwargs)
            if phase == "backward":
                self._listener.loss_is_known(args[0] if args else kwargs.get("tensors"))
            self._calls.append(phase)
            self._begin(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._end_call(phase)

        return run

    def _end_call(self, phase: str) -> None:
        self._calls.pop()
        if phase in ("backward", "optimizer"):
            self._rest = OTHER
        self._begin(self._calls[-1] if self._calls else self._rest)

    def _leaving_no_grad(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(leave)
        def exit_(*args: Any) -> Any:
            result = leave(*args)
            if self.current == "evaluation" and torch.is_grad_enabled():
                self._settle(OTHER)
            return result

        return exit_


def _patched() -> Iterator[tuple[Any, str, str]]:
    yield torch.autograd, "backward", "backward"
    yield nn.utils, "clip_grad_norm_", "clip"
    yield nn.utils, "clip_grad_value_", "clip"
    yield torch.amp.GradScaler, "step", "optimizer"
    yield torch.optim.Optimizer, "zero_grad", "zero_grad"
    yield nn.Module, "zero_grad", "zero_grad"
    yield torch, "save", "save"
    yield torch, "load", "load"
    yield nn.Module, "load_state_dict", "load"
