"""Imports `path/to/file.py:attr` and `package.module:attr`, by the same rules as uvicorn and fastapi-cli."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from memprof.errors import MemprofError, UsageError, did_you_mean
from memprof.user_code import describe


@dataclass(frozen=True)
class Imported:
    """The object that a `MODULE:ATTR` text names.

    Attributes:
        value: The object.
        module: The module that it was found in.
        file: The file of that module, or None if it has none.
    """

    value: Any
    module: ModuleType
    file: str | None

    def beside(self, name: str) -> Any:
        """Return another attribute of the same module, or None if it does not exist."""
        return getattr(self.module, name, None)


def import_attr(text: str) -> Imported:
    """Import the object that `path/to/file.py:attr` or `package.module:attr` names; the attribute may contain dots.

    Args:
        text: The text.

    Returns:
        The object and its module.

    Raises:
        UsageError: The text has another form, the file, module or attribute does not exist, or importing it raised an
            error.
    """
    source, _, attr = text.rpartition(":")
    if not source or not attr:
        raise UsageError(f"{text!r} must be path/to/file.py:attr or package.module:attr")
    module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    value: Any = module
    for name in attr.split("."):
        if not hasattr(value, name):
            raise UsageError(f"{source} has no attribute {attr!r}{did_you_mean(attr, _public(module))}")
        value = getattr(value, name)
    return Imported(value, module, getattr(module, "__file__", None))


def _public(module: ModuleType) -> list[str]:
    """Return the names that the module itself defines and that could be a model."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == module.__name__
    ]


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    file = path.resolve()
    root, name = _import_root(file)
    _put_first(root)
    return _run(str(path), name, lambda: _load_file(file, name), str(file))


def _load_file(path: Path, name: str) -> ModuleType:
    """Import a file under its dotted name, or by its location if that name belongs to another module (`types.py`)."""
    if all(part.isidentifier() for part in name.split(".")):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not _names(error, name):
                raise
        else:
            found = getattr(module, "__file__", None)
            if found is not None and Path(found).resolve() == path:
                return module
    return _load_by_location(path)


def _names(error: ModuleNotFoundError, name: str) -> bool:
    """Return whether the missing module is the named one or a package that contains it, not one that it imports."""
    return error.name is not None and f"{name}.".startswith(f"{error.name}.")


def _import_root(path: Path) -> tuple[Path, str]:
    """Return the folder to import from and the dotted name. A parent folder with an `__init__.py` is a package."""
    names = [] if path.stem == "__init__" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(names)


def _load_by_location(path: Path) -> ModuleType:
    """Import a file by its location, under a name that no other module has."""
    name = f"_memprof_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{name!r} is neither a .py file nor a module; write path/to/file.py:attr")
    _put_first(Path.cwd())
    return _run(name, name, lambda: importlib.import_module(name))


def _put_first(folder: Path) -> None:
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))


def _run(source: str, name: str, load: Callable[[], ModuleType], file: str | None = None) -> ModuleType:
    """Import a module, and turn every error into a UsageError of one sentence."""
    arguments = list(sys.argv)
    sys.argv[:] = [source]  # a file that reads its arguments when it is imported finds none
    try:
        module: ModuleType = load()
    except MemprofError:
        raise
    except ModuleNotFoundError as error:
        if _names(error, name):
            raise UsageError(f"there is no module {name!r}; is it installed, or in the current folder?") from error
        raise UsageError(
            f"{source} imports {error.name!r}, which is not installed ({describe(error, file)})"
        ) from error
    except SystemExit as error:
        raise UsageError(
            f"{source} exits when it is imported; put its script part under if __name__ == '__main__', or run it as "
            "it is with memprof run, and with memprof run --vary for its largest batch"
        ) from error
    except Exception as error:
        raise UsageError(f"importing {source} raised {describe(error, file)}") from error
    finally:
        sys.argv[:] = arguments
    return module
