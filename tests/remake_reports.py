"""Makes the committed reports again, each by the command that its JSON names.

python -m tests.remake_reports              # all: some minutes each
python -m tests.remake_reports gpt2_cpu     # one
python -m tests.remake_reports --render     # Markdown and figures alone, from the JSON that is there
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from memprof.report.files import report_paths, write_report
from memprof.results import Comparison

REPORTS = Path(__file__).parents[1] / "reports"


def saved_comparisons() -> list[Path]:
    """Return the JSON files of the reports that `memprof compare` made."""
    return [path for path in sorted(REPORTS.glob("*.json")) if '"memprof.comparison/1"' in path.read_text()[:200]]


def remake(path: Path) -> None:
    """Run the command of a report in the repository's root, with what it made before out of the way."""
    command = Comparison.load(path).environment.command
    assert command is not None
    kept = {old: old.read_bytes() for old in [path, *report_paths(path.with_suffix(".md"))] if old.exists()}
    for old in kept:
        old.unlink()
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)], cwd=REPORTS.parent, env=os.environ, check=False
    )
    if done.returncode:
        for old, content in kept.items():
            old.write_bytes(content)
        sys.exit(f"{command}: exit code {done.returncode}; {path.name} is as it was")


def main(arguments: Sequence[str]) -> None:
    """Remake the reports that are named, or all."""
    names = [name for name in arguments if name != "--render"]
    for path in saved_comparisons():
        if names and path.stem not in names:
            continue
        if "--render" in arguments:
            write_report(Comparison.load(path), path.with_suffix(".md"), path)
        else:
            remake(path)


if __name__ == "__main__":
    main(sys.argv[1:])
