"""Published results: where they are saved, and their own commands, run again."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from memprof.documents.advice import AdviceReport
from memprof.documents.fit import FitReport
from memprof.documents.load import AnyReport, load_any
from memprof.documents.wording import made_where
from memprof.errors import MemprofError, UsageError, did_you_mean
from memprof.files import write_text
from memprof.report.write import write_fit_report, write_report

_COMMANDS = ("compare", "fit", "advise")  # a saved command is not obeyed beyond these
_SCHEMAS = ('"memprof.comparison/', '"memprof.fit/', '"memprof.advice/')
_OUTPUTS = ("--json", "--force")


@dataclass(frozen=True)
class Published:
    """A saved result, and the command that made it."""

    path: Path
    document: AnyReport

    @property
    def name(self) -> str:
        """What it is called: its file's name without the suffix."""
        return self.path.stem

    @property
    def command(self) -> str:
        """The command as it was given.

        Raises:
            UsageError: the document does not say, or it is none of memprof's that make a result.
        """
        command = self.document.environment.command or ""
        words = shlex.split(command)
        if words[:1] != ["memprof"] or len(words) < 2 or words[1] not in _COMMANDS:
            known = ", ".join(f"memprof {name}" for name in _COMMANDS)
            raise UsageError(f"{self.path} names no command that can be run again ({known}); it was made from Python")
        return command

    @property
    def arguments(self) -> list[str]:
        """The command's arguments without those that say where its result goes."""
        return _without_outputs(shlex.split(self.command)[1:])

    @property
    def origin(self) -> str:
        """How its figures came about: `predicted for rtx-4090`."""
        if isinstance(self.document, FitReport):
            return f"largest {self.document.vary.knob} on {', '.join(one.name for one in self.document.devices)}"
        if isinstance(self.document, AdviceReport):
            return f"advice for {self.document.device.name}"
        found = {made_where(run.source, run.device) for run in self.document.runs}
        return ", ".join(sorted(found))


def find_published(folder: Path) -> list[Published]:
    """Return the results that are saved in a folder, by name.

    Raises:
        UsageError: there is no such folder, or a result in it cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} here; name a saved result, or --folder")
    files = [path for path in sorted(folder.glob("*.json")) if _is_result(path)]
    return [Published(path, load_any(path)) for path in files]


def choose(name: str, folder: Path) -> Published:
    """Return the published result of a name, or the one that is saved in the file of that name.

    Raises:
        UsageError: there is none.
    """
    if name.endswith(".json"):
        return Published(Path(name), load_any(name))
    known = {one.name: one for one in find_published(folder)}
    if name not in known:
        raise UsageError(f"there is no result {name!r} in {folder}{did_you_mean(name, list(known))}")
    return known[name]


def run_again(published: Published) -> AnyReport:
    """Run the command of a result in a process of its own, and return what it makes; no file is changed.

    Raises:
        MemprofError: the command made nothing, or nothing whole.
    """
    with TemporaryDirectory(prefix="memprof-") as folder:
        made = Path(folder, "result.json")
        command = [sys.executable, "-m", "memprof", *published.arguments, "--json"]
        with made.open("wb") as stdout:
            ended = subprocess.run(command, cwd=_root(published), stdout=stdout, check=False).returncode
        if not made.stat().st_size or ended > 1:  # 1: nothing fits, which may be what was published
            raise MemprofError(f"`{published.command}` ended with exit code {ended}")
        return load_any(made)


def replace(published: Published, document: AnyReport) -> list[Path]:
    """Put a new result, with the old one's command, and its report in the old one's place; return the files."""
    environment = document.environment.model_copy(update={"command": published.command})
    document = document.model_copy(update={"environment": environment})
    document.save(published.path)
    report = published.path.with_suffix(".md")
    if not report.exists():
        return [published.path]
    if isinstance(document, FitReport):
        return [published.path, *write_fit_report(document, report, published.path)]
    if isinstance(document, AdviceReport):
        write_text(report, document.to_markdown())
        return [published.path, report]
    return [published.path, *write_report(document, report, published.path)]


def _is_result(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(200)
    return any(schema in head for schema in _SCHEMAS)


def _without_outputs(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments without those that say where its result goes."""
    kept: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument.startswith("--export-"):
            if "=" not in argument:
                next(waiting, None)
        elif argument not in _OUTPUTS:
            kept.append(argument)
    return kept


def _root(published: Published) -> Path:
    """Return the folder in which the command was given: from which its `--export-json` names the file."""
    words = shlex.split(published.command)
    path = published.path.resolve()
    for option, value in zip(words, [*words[1:], ""], strict=True):
        if option == "--export-json" and path.parts[-len(Path(value).parts) :] == Path(value).parts:
            return Path(*path.parts[: -len(Path(value).parts)])
    return Path.cwd()
