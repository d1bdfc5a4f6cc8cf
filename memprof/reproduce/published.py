"""Finds published results and runs the commands that made them again."""

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

_COMMANDS = ("compare", "fit", "advise")  # for safety, no other saved command is run
_SCHEMAS = ('"memprof.comparison/', '"memprof.fit/', '"memprof.advice/')
_OUTPUTS = ("--json", "--force")


@dataclass(frozen=True)
class Published:
    """A saved result with the command that made it.

    Attributes:
        path: The path of the file.
        document: The result.
    """

    path: Path
    document: AnyReport

    @property
    def name(self) -> str:
        """The name of the result: the file's name without the suffix."""
        return self.path.stem

    @property
    def command(self) -> str:
        """The command that made the result.

        Raises:
            UsageError: The document names no command, or one that does not make a result.
        """
        command = self.document.environment.command or ""
        words = shlex.split(command)
        if words[:1] != ["memprof"] or len(words) < 2 or words[1] not in _COMMANDS:
            known = ", ".join(f"memprof {name}" for name in _COMMANDS)
            raise UsageError(f"{self.path} names no command that can be run again ({known}); it was made from Python")
        return command

    @property
    def arguments(self) -> list[str]:
        """The arguments of the command, without the options for its outputs."""
        return _without_outputs(shlex.split(self.command)[1:])

    @property
    def origin(self) -> str:
        """How the figures were made, such as `predicted for rtx-4090`."""
        if isinstance(self.document, FitReport):
            return f"largest {self.document.vary.knob} on {', '.join(one.name for one in self.document.devices)}"
        if isinstance(self.document, AdviceReport):
            return f"advice for {self.document.device.name}"
        found = {made_where(run.source, run.device) for run in self.document.runs}
        return ", ".join(sorted(found))


def find_published(folder: Path) -> list[Published]:
    """Return the results that are saved in a folder, sorted by name.

    Raises:
        UsageError: The folder does not exist, or a result in it cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} here; name a saved result, or --folder")
    files = [path for path in sorted(folder.glob("*.json")) if _is_result(path)]
    return [Published(path, load_any(path)) for path in files]


def choose(name: str, folder: Path) -> Published:
    """Return one published result.

    Args:
        name: The name of a result in the folder, or the path of a file that ends in `.json`.
        folder: The folder with the published results.

    Returns:
        The result.

    Raises:
        UsageError: There is no such result.
    """
    if name.endswith(".json"):
        return Published(Path(name), load_any(name))
    known = {one.name: one for one in find_published(folder)}
    if name not in known:
        raise UsageError(f"there is no result {name!r} in {folder}{did_you_mean(name, list(known))}")
    return known[name]


def run_again(published: Published) -> AnyReport:
    """Run the command of a result again in a separate process. The published files are not changed.

    Args:
        published: The result whose command is run.

    Returns:
        The new result.

    Raises:
        MemprofError: The command failed or wrote no complete result.
    """
    with TemporaryDirectory(prefix="memprof-") as folder:
        made = Path(folder, "result.json")
        command = [sys.executable, "-m", "memprof", *published.arguments, "--json"]
        with made.open("wb") as stdout:
            ended = subprocess.run(command, cwd=command_folder(published), stdout=stdout, check=False).returncode
        if not made.stat().st_size or ended > 1:  # 1 means that nothing fits, which may be the published result
            raise MemprofError(f"`{published.command}` ended with exit code {ended}")
        return load_any(made)


def replace(published: Published, document: AnyReport) -> list[Path]:
    """Overwrite a published result and its report with a new result, which keeps the recorded command.

    Args:
        published: The result to overwrite.
        document: The new result.

    Returns:
        The paths of the files that were written.
    """
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
    """Return the arguments of a command without the options for its outputs."""
    kept: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument.startswith("--export-"):
            if "=" not in argument:
                next(waiting, None)
        elif argument not in _OUTPUTS:
            kept.append(argument)
    return kept


def command_folder(published: Published) -> Path:
    """Return the folder in which the command was run: the path in its `--export-json` is relative to that folder."""
    words = shlex.split(published.command)
    path = published.path.resolve()
    for option, value in zip(words, [*words[1:], ""], strict=True):
        if option == "--export-json" and path.parts[-len(Path(value).parts) :] == Path(value).parts:
            return Path(*path.parts[: -len(Path(value).parts)])
    return Path.cwd()
