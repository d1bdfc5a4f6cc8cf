from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memprof.report.text_table import GAP, MINOR, Table, column_widths, fold, number_table


def make_table(widths: list[int], ranks: list[int]) -> Table:
    rows = (("name", *("9" * width for width in widths)),)
    return Table(
        titles=("n", *(str(index) for index in range(len(widths)))),
        rows=rows,
        ranks=(0, *ranks),
        right=(False,) * (len(widths) + 1),
    )


CELLS = st.lists(st.tuples(st.integers(1, 14), st.integers(1, 99)), max_size=14)


@given(CELLS, st.integers(10, 120))
def test_folding_keeps_every_column_once_in_its_order_and_within_the_width(
    cells: list[tuple[int, int]], width: int
) -> None:
    table = make_table([size for size, _ in cells], [rank for _, rank in cells])
    pieces = fold(table, column_widths(table, 10), width)
    shown = [title for piece in pieces for title in piece.titles[1:]]
    assert sorted(shown) == sorted(table.titles[1:])
    for piece in pieces:
        assert piece.titles[0] == "n"
        assert list(piece.titles[1:]) == sorted(piece.titles[1:], key=int)
        widths = column_widths(piece, 10)
        assert sum(widths) + GAP * (len(widths) - 1) <= width or len(widths) <= 2


def test_columns_get_their_places_by_rank() -> None:
    table = make_table([8, 8, 8], [3, 1, 2])
    first, second = fold(table, column_widths(table, 10), 4 + 2 * (8 + GAP))
    assert first.titles == ("n", "1", "2")
    assert second.titles == ("n", "0")


def test_minor_columns_do_not_open_a_table() -> None:
    table = make_table([8, 8], [1, MINOR])
    assert [piece.titles for piece in fold(table, column_widths(table, 10), 14)] == [("n", "0")]
    assert [piece.titles for piece in fold(table, column_widths(table, 10), 99)] == [("n", "0", "1")]


def test_widths_count_terminal_cells_and_break_headings_at_spaces() -> None:
    table = number_table("optimizer", ["largest batch", "x"], [("😀", ["~61", "12345"])])
    assert column_widths(table, 40) == [9, 7, 5]
    assert column_widths(table, 4)[0] == 4
