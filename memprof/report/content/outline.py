"""The outline of a comparison's report: its sections in order, each a title and blocks that every format renders.

A section that is added here appears in the Markdown report and in the HTML page. The terminal shows a selection that
fits a screen, under the same titles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memprof.documents.comparison import Comparison
from memprof.report.blocks import Block, Bullets, Command, FigureReference, Folded, Paragraph
from memprof.report.content import sections, validation
from memprof.report.content.facts import caveats, facts
from memprof.report.content.levers import levers
from memprof.report.content.ranks import rank_remark, rank_table
from memprof.report.content.tables import fit_table, history_remarks, validation_table

HOLDERS = "Who holds the memory at the peak"
RANKS = "What each rank holds"
VALIDATION = "Predicted against measured"
BASIS = "What the prediction rests on"


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: its heading.
        blocks: what stands below, none of them empty.
    """

    title: str
    blocks: tuple[Block, ...]


def outline(comparison: Comparison) -> list[Section]:
    """Return the sections that follow the main table, without those that have nothing to say."""
    command = comparison.environment.command
    found: dict[str, list[Block]] = {
        HOLDERS: _holders(comparison),
        RANKS: [rank_table(comparison), Paragraph(rank_remark(comparison))],
        "What would lower the peak": [_bullets(levers(comparison))],
        "Peak within each phase": _phases(comparison),
        "Largest batch and model": _fits(comparison),
        VALIDATION: [
            Paragraph(validation.remark(comparison)),
            validation.layer_table(comparison),
            _bullets(validation.reasons(comparison)),
            Folded("Every figure", validation_table(comparison)),
        ],
        BASIS: [_bullets(sections.basis(comparison)), sections.range_table(comparison)],
        "What the allocator recorded": [_bullets(history_remarks(comparison))],
        "Caveats": [_bullets(caveats(comparison))],
        "Environment": [_bullets([f"{name}: {value}" for name, value in facts(comparison)])],
        "Reproduce": [Command(command or "")],
    }
    filled = {title: tuple(block for block in blocks if block.says_something) for title, blocks in found.items()}
    return [
        Section(title, blocks)
        for title, blocks in filled.items()
        if any(not isinstance(block, FigureReference) for block in blocks)
    ]


def _bullets(lines: Sequence[str]) -> Bullets:
    return Bullets(tuple(lines))


def _holders(comparison: Comparison) -> list[Block]:
    if not sections.breakdowns(comparison):
        return []
    modules = sections.module_table(comparison)
    named: list[Block] = [Paragraph("The modules that hold most of it:"), modules] if modules.rows else []
    return [FigureReference("peak"), sections.category_table(comparison), *named]


def _phases(comparison: Comparison) -> list[Block]:
    table = sections.phase_table(comparison)
    if not table.rows:
        return []
    return [FigureReference("timeline"), table, Paragraph("* the phase that sets the peak of the step.")]


def _fits(comparison: Comparison) -> list[Block]:
    remark = sections.fit_remark(comparison)
    return [FigureReference("batch"), Paragraph(remark), fit_table(comparison)] if remark else []
