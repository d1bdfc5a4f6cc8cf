"""From `pkg.mod:Class` or `file.py:Class` to the object, with a sentence for each way that it can fail."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from memprof.errors import UsageError, did_you_mean


def import_attribute(path: str, subject: str) -> Any:
    """Return what an import path names.

    Args:
        path: `pkg.mod:attr`, `pkg.mod:Outer.attr` or `file.py:attr`. Modules are looked up in the current
            folder too, after everything that is installed.
        subject: what a message begins with, e.g. `optimizer 'x:Y'`.

    Raises:
        UsageError: there is no such module, file or attribute, or importing it fails for a reason of its own.
    """
    module_path, _, attribute = path.rpartition(":")
    module = _load_file(module_path, subject) if module_path.endswith(".py") else _load(module_path, subject)
    target: Any = module
    for name in attribute.split("."):
        if not hasattr(target, name):
            classes = [
                key for key, value in vars(target).items() if isinstance(value, type) and key[0] != "_"
            ]
            hint = did_you_mean(name, classes) if len(classes) < 20 else ""
            raise UsageError(f"{subject}: {module_path} has no {attribute!r}{hint}")
        target = getattr(target, name)
    return target


def _load(module: str, subject: str) -> ModuleType:
    folder = os.getcwd()
    if "" not in sys.path and folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise UsageError(
                f"{subject}: no module is called {error.name!r}; install its package, or mend the path"
            ) from error
        raise _import_failure(module, subject, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failure(module, subject, error) from error


def _load_file(path: str, subject: str) -> ModuleType:
    file = Path(path).resolve()
    if not file.is_file():
        raise UsageError(f"{subject}: there is no file {path!r}; give the path from the current folder")
    name = f"memprof_file_{file.stem}_{abs(hash(str(file))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_failure(path, subject, error) from error
    return module


def _import_failure(module: str, subject: str, error: BaseException) -> UsageError:
    message = " ".join(str(error).split())
    return UsageError(f"{subject}: importing {module} failed inside: {type(error).__name__}: {message}")
