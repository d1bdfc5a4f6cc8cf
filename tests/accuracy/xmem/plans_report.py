"""The tables of `reports/convolutions.md`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping

from tests.accuracy.xmem.convolutions import Convolution
from tests.accuracy.xmem.report import Table, markdown
from tests.accuracy.xmem.statistics import percentile
from tests.accuracy.xmem.truth import Row

MIB = 2**20
EARLY = "as the table, but 2.043 MiB per image for the first convolution before 8.9"
Errors = Mapping[str, Mapping[Row, int]]


def hypotheses(errors: Errors) -> str:
    """Return how good each hypothesis is, on all runs and by GPU."""
    table: Table = [("what a convolution takes", "median", "p90", "mean", "above 5 %", "RTX 3060", "RTX 4060")]
    for name, found in errors.items():
        shares = [_share(row, error) for row, error in found.items()]
        by_gpu = [_median(found, lambda row, gpu=gpu: row.device == gpu) for gpu in ("rtx-3060", "rtx-4060")]
        wrong = sum(share > 0.05 for share in shares)
        figures = (statistics.median(shares), percentile(shares, 0.9), statistics.mean(shares))
        table.append((name, *(f"{figure:.2%}" for figure in figures), str(wrong), *(f"{one:.2%}" for one in by_gpu)))
    return markdown(table)


def left_out(errors: Errors) -> str:
    """Return what comes out on runs that had no part in choosing: the hypothesis that is best on all others."""
    table: Table = [("left out", "runs", "best on the others", "its median there", "with the table", "with nothing")]
    names = list(errors)
    rows = list(errors[names[0]])
    chosen: dict[Row, float] = {}
    for title, key in (("model", lambda row: row.model), ("GPU", lambda row: row.device)):
        for value in dict.fromkeys(key(row) for row in rows):
            out = lambda row, key=key, value=value: key(row) == value  # noqa: E731
            others = {name: {row: errors[name][row] for row in rows if not out(row)} for name in names}
            best = min(names, key=lambda name, others=others: _median(others[name], lambda row: True))
            held = [_median(errors[name], out) for name in (best, names[1], names[0])]
            count = sum(map(out, rows))
            table.append((f"{title} {value}", str(count), best, *(f"{one:.2%}" for one in held)))
            if title == "model":
                chosen |= {row: _share(row, errors[best][row]) for row in rows if out(row)}
    figures = (statistics.median(chosen.values()), percentile(list(chosen.values()), 0.9))
    return markdown(table) + (
        f"\n\nAll models, each with what is best on the others: median {figures[0]:.2%}, p90 {figures[1]:.2%}."
    )


def classes(plans: Mapping[str, list[tuple[Convolution, list[list[int]]]]]) -> str:
    """Return how often cuDNN prefers tensor cores, and how often its first plan takes a MiB or more, by class."""
    names = list(plans)
    table: Table = [("pass", "layout", "convolutions", *(f"{name}: tensor cores, takes" for name in names))]
    firsts: dict[tuple[str, str, str], dict[str, list[list[int]]]] = {}
    for device, found in plans.items():
        for convolution, answer in found:
            firsts.setdefault(_class(convolution), {}).setdefault(device, []).append(answer[0])
    for place, by_device in sorted(firsts.items()):
        table.append((*place, *(_preference(by_device.get(name, [])) for name in names)))
    return markdown(table)


def _preference(firsts: list[list[int]]) -> str:
    if not firsts:
        return ""
    cores = sum(first[1] for first in firsts) / len(firsts)
    taking = sum(first[2] >= MIB for first in firsts) / len(firsts)
    return f"{cores:.0%}, {taking:.0%} of {len(firsts)}"


def residuals(errors: Errors) -> str:
    """Return what is left run by run, in MiB and per image."""
    names = list(errors)
    columns = [names[0], names[1], "cuDNN 9.8's first plan", EARLY]
    table: Table = [("run", "nothing", "the table", columns[2], "2.043 MiB early", "the table, per image")]
    for row in sorted(errors[names[0]], key=lambda row: (row.model, row.device, row.batch_size)):
        sizes = [errors[name][row] / MIB for name in columns]
        table.append((row.name, *(f"{size:+.0f}" for size in sizes), f"{sizes[1] / row.batch_size:+.2f}"))
    return markdown(table)


def _class(convolution: Convolution) -> tuple[str, str, str]:
    side = convolution.image[2]
    size = next(
        text
        for limit, text in ((3, "up to 3"), (11, "4 to 11"), (22, "12 to 22"), (10**9, "above 22"))
        if side <= limit
    )
    kernel = "x".join(map(str, convolution.weight[2:]))
    kind = (
        "depthwise"
        if convolution.depthwise
        else "grouped"
        if convolution.groups > 1
        else "1x1"
        if kernel == "1x1"
        else "kxk"
    )
    return convolution.which, "NHWC" if convolution.channels_last else "NCHW", f"{kind}, images {size}"


def _share(row: Row, error: int) -> float:
    return abs(error) / row.truth_bytes


def _median(found: Mapping[Row, int], wanted: Callable[[Row], bool]) -> float:
    shares: Iterable[float] = [_share(row, error) for row, error in found.items() if wanted(row)]
    return statistics.median(shares)
