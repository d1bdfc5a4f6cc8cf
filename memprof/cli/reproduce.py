"""The command `memprof reproduce`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memprof.cli.options import DebugOption, JsonOption
from memprof.cli.output import print_json, print_table, tell
from memprof.errors import ExitCode

if TYPE_CHECKING:
    from memprof.reproduce.agreement import Agreement
    from memprof.reproduce.published import Published

_MOST = 20  # the largest number of differences that are printed


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME|RESULT.json]", help="The result to reproduce; without it, all are listed."),
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="The folder of published results.", metavar="DIR")] = Path(
        "reports"
    ),
    write: Annotated[
        bool, typer.Option("--write", help="Overwrite the published result and its report with the new ones.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the command of a published result again and compare the figures; exit code 1 if they differ."""
    from memprof.reproduce.agreement import agreement
    from memprof.reproduce.published import choose, find_published, replace, run_again

    if name is None:
        _list(find_published(folder), as_json)
        return
    published = choose(name, folder)
    tell(published.command)
    document = run_again(published)
    found = agreement(published.document, document)
    if as_json:
        print_json(_as_json(published) | vars(found))
    else:
        _show(published, found)
    if write:
        tell(f"wrote {', '.join(map(str, replace(published, document)))}")
    raise typer.Exit(ExitCode.BUDGET_EXCEEDED if found.differences else ExitCode.OK)


def _list(results: list[Published], as_json: bool) -> None:
    if as_json:
        print_json([_as_json(one) for one in results])
        return
    rows = [(one.name, one.origin, one.document.environment.torch, shlex.join(one.arguments)) for one in results]
    print_table(("name", "figures", "torch", "memprof ..."), rows)


def _as_json(published: Published) -> dict[str, str]:
    return {"name": published.name, "figures": published.origin, "command": published.command}


def _show(published: Published, found: Agreement) -> None:
    differing = len(found.differences)
    for sentence in found.differences[:_MOST]:
        print(f"- {sentence}")
    if differing > _MOST:
        print(f"- and {differing - _MOST} more")
    for remark in found.remarks:
        print(f"({remark})")
    how = (
        f"{differing} of {found.compared} figures differ"
        if differing
        else (f"all {found.compared} figures were reproduced")
    )
    print(f"{published.name}: {how} ({published.origin})")
