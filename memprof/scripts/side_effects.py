"""Keeps what a script writes out of the user's folders, in a temporary folder that is removed.

`torch.save` writes there, and `torch.load` of the same path finds the file. The folders of `save_pretrained` and of the
trainers' checkpoints are redirected as well. Experiment trackers are switched off.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from memprof.scripts.imports import after_import

_TRACKERS_OFF = {
    "WANDB_MODE": "disabled",
    "COMET_MODE": "disabled",
    "NEPTUNE_MODE": "debug",
    "CLEARML_OFFLINE_MODE": "1",
    "HF_MLFLOW_LOG_ARTIFACTS": "0",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
}


class KeptOutputs:
    """Maps the paths that a script writes to the places where they are kept instead.

    Args:
        folder: The folder that takes the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[str, Path] = {}

    def instead_of(self, path: str | os.PathLike[str]) -> Path:
        """Return the place where a written path is kept, and create its folder."""
        whole = os.path.abspath(path)
        if whole.startswith(str(self._folder)):
            return Path(whole)
        kept = self._paths.setdefault(whole, self._folder / whole.lstrip(os.sep))
        kept.parent.mkdir(parents=True, exist_ok=True)
        return kept

    def found(self, path: str | os.PathLike[str]) -> str | os.PathLike[str]:
        """Return the path to read: the kept one if the script has written it, or else the path itself."""
        kept = self._folder / os.path.abspath(path).lstrip(os.sep)
        return kept if kept.exists() else path


@contextmanager
def kept_outputs(keep: bool, given: Path | None = None) -> Iterator[None]:
    """Send everything that is saved within the `with` block to a temporary folder.

    Args:
        keep: Whether everything stays where the script writes it.
        given: The folder to use, which the caller removes; None for a new one.
    """
    if keep:
        yield
        return
    with ExitStack() as stack:
        folder = given or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memprof-"))).resolve()
        outputs = KeptOutputs(folder)
        stack.enter_context(patch.object(torch, "save", _redirected(torch.save, outputs.instead_of, 1)))
        stack.enter_context(patch.object(torch, "load", _redirected(torch.load, outputs.found, 0)))
        tracked = {"MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri()}
        stack.enter_context(patch.dict(os.environ, {**_TRACKERS_OFF, **tracked}))
        stack.enter_context(after_import(_hooks(outputs)))
        yield


def _redirected(function: Callable[..., Any], redirect: Callable[[Any], Any], place: int) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = args[place] if len(args) > place else kwargs.get("f")
        if isinstance(given, (str, os.PathLike)):
            there = redirect(given)
            if len(args) > place:
                args = (*args[:place], there, *args[place + 1 :])
            else:
                kwargs["f"] = there
        return function(*args, **kwargs)

    return run


def _hooks(outputs: KeptOutputs) -> dict[str, Callable[[Any], None]]:
    """Return the functions that redirect the folders of libraries after their import, by module name."""

    def folder_of(owner: str, method: str, place: int, name: str) -> Callable[[Any], None]:
        def change(module: Any) -> None:
            kind = getattr(module, owner, None)
            if kind is None:
                return
            original = getattr(kind, method)

            @wraps(original)
            def run(*args: Any, **kwargs: Any) -> Any:
                if len(args) > place and args[place] is not None:
                    args = (*args[:place], str(outputs.instead_of(args[place])), *args[place + 1 :])
                elif kwargs.get(name) is not None:
                    kwargs[name] = str(outputs.instead_of(kwargs[name]))
                return original(*args, **kwargs)

            setattr(kind, method, run)

        return change

    def settings(module: Any) -> None:
        original = module.TrainingArguments.__post_init__

        def post_init(self: Any) -> None:
            self.output_dir = str(outputs.instead_of(self.output_dir or "trainer_output"))
            original(self)

        module.TrainingArguments.__post_init__ = post_init

    def lightning(module: Any) -> None:
        original = module.Trainer.__init__

        @wraps(original)
        def init(self: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs["default_root_dir"] = str(outputs.instead_of(kwargs.get("default_root_dir") or os.getcwd()))
            return original(self, *args, **kwargs)

        module.Trainer.__init__ = init

    return {
        "transformers.modeling_utils": folder_of("PreTrainedModel", "save_pretrained", 1, "save_directory"),
        "transformers.tokenization_utils_base": folder_of(
            "PreTrainedTokenizerBase", "save_pretrained", 1, "save_directory"
        ),
        "transformers.training_args": settings,
        "diffusers.models.modeling_utils": folder_of("ModelMixin", "save_pretrained", 1, "save_directory"),
        "diffusers.pipelines.pipeline_utils": folder_of("DiffusionPipeline", "save_pretrained", 1, "save_directory"),
        "peft.peft_model": folder_of("PeftModel", "save_pretrained", 1, "save_directory"),
        "accelerate.accelerator": folder_of("Accelerator", "save_state", 1, "output_dir"),
        "torch.utils.tensorboard.writer": folder_of("SummaryWriter", "__init__", 1, "log_dir"),
        "lightning.pytorch.trainer.trainer": lightning,
        "pytorch_lightning.trainer.trainer": lightning,
    }
