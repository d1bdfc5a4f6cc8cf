"""A small SVG writer for rectangles, lines, areas, marks and text, in a light and a dark colour scheme.

This module exists because no plotting library fits. The figures of a report must be the same bytes whenever they are
made (they are committed and compared), follow the reader's light or dark scheme, carry a description for screen
readers, and need no further package. matplotlib writes output that depends on its version, with fixed colours and font
outlines, and it would be the heaviest dependency of the package. Four kinds of figures of straight lines and text need
a hundred lines.

The colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which readers with every kind of colour
vision can tell apart, with a grey and a brown for what is rarely shown. Lines also differ in their dashes and marks,
and every figure is shown next to a table of its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

WIDTH = 760
# The width of an average letter at a font size of 12 pixels. Proportional fonts differ, so it is chosen generously.
LETTER = 6.6

INKS = ("blue", "orange", "green", "vermillion", "purple", "sky", "yellow", "grey")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "1 4", "12 4", "4 2 1 2")
MARKS = ("circle", "square", "triangle", "diamond")
_STYLE = """\
text{font:12px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:var(--ink)}
.strong{font-weight:600}.muted{fill:var(--muted)}.onpaper{stroke:var(--paper);stroke-width:3px;paint-order:stroke}
.paper{fill:var(--paper)}.band{fill:var(--band)}.grid{stroke:var(--grid)}.axis{stroke:var(--muted)}
.limit{stroke:var(--ink);stroke-width:2;stroke-dasharray:6 4}.cut{stroke:var(--paper)}
.curve{fill:none;stroke-width:2}.thin{fill:none;stroke:var(--ink);stroke-width:1.2}
.blue{--c:#0072b2}.orange{--c:#e69f00}.green{--c:#009e73}.vermillion{--c:#d55e00}
.purple{--c:#cc79a7}.sky{--c:#56b4e9}.yellow{--c:#f0e442}.grey{--c:#8c959f}
.brown{--c:#8a5a2b}.dark{--c:var(--ink)}
.fill{fill:var(--c)}.line{stroke:var(--c)}.soft{fill:var(--c);fill-opacity:.35}.hollow{fill:var(--paper);stroke:var(--c)}
svg{--ink:#1f2328;--muted:#59636e;--grid:#d1d9e0;--paper:#fff;--band:#f1f4f7}
@media(prefers-color-scheme:dark){svg{--ink:#f0f6fc;--muted:#9198a1;--grid:#3d444d;--paper:#0d1117;--band:#1b222b}
.blue{--c:#2486c9}.sky{--c:#9bd5f7}.grey{--c:#7d8590}.brown{--c:#b5835a}}
"""


class Drawing:
    """A drawing that elements are added to. Coordinates are in pixels from the top left corner.

    The argument `look` of the methods is the list of CSS classes of the element.

    Args:
        title: The title, which screen readers read out and browsers show under the mouse.
        description: The content of the figure in words.
    """

    def __init__(self, title: str, description: str) -> None:
        self._title = title
        self._description = description
        self._parts: list[str] = []

    def rectangle(
        self, x: float, y: float, width: float, height: float, look: str, tip: str = "", opacity: float = 1.0
    ) -> None:
        """Draw a rectangle.

        Args:
            x: The left edge.
            y: The upper edge.
            width: The width.
            height: The height.
            look: The CSS classes.
            tip: A text that browsers show under the mouse if the file is opened on its own.
            opacity: The opacity of the filling, from 0 to 1.
        """
        area = f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" class="{look}"'
        area += f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
        self._parts.append(f"{area}><title>{escape(tip)}</title></rect>" if tip else f"{area}/>")

    def line(self, x1: float, y1: float, x2: float, y2: float, look: str) -> None:
        """Draw a straight line."""
        self._parts.append(f'<path d="M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}" class="{look}"/>')

    def curve(self, points: Iterable[tuple[float, float]], look: str, dash: str = "") -> None:
        """Draw a line through points, or fill the area that they enclose.

        Args:
            points: The points, as pairs of x and y.
            look: The CSS classes, which decide between a line and an area.
            dash: The SVG dash pattern of the line; empty for a solid line.
        """
        path = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(f'<path d="M{path}" class="{look}"{dashed}/>')

    def mark(self, x: float, y: float, shape: str, look: str, radius: float = 4) -> None:
        """Draw a mark around a point.

        Args:
            x: The horizontal position of the point.
            y: The vertical position of the point.
            shape: `circle`, `square`, `triangle`, `diamond` or `cross`.
            look: The CSS classes.
            radius: The size of the mark, from its centre to its edge.
        """
        r, d = radius, radius + 1
        paths = {
            "square": f"M{_n(x - r)} {_n(y - r)}h{_n(2 * r)}v{_n(2 * r)}h{_n(-2 * r)}z",
            "triangle": f"M{_n(x)} {_n(y - r - 1)}l{_n(r + 1)} {_n(2 * r + 1)}h{_n(-2 * r - 2)}z",
            "diamond": f"M{_n(x)} {_n(y - d)}l{_n(d)} {_n(d)}l{_n(-d)} {_n(d)}l{_n(-d)} {_n(-d)}z",
            "cross": f"M{_n(x - r)} {_n(y - r)}l{_n(2 * r)} {_n(2 * r)}m0 {_n(-2 * r)}l{_n(-2 * r)} {_n(2 * r)}",
        }
        shown = f'path d="{paths[shape]}"' if shape in paths else f'circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}"'
        self._parts.append(f'<{shown} class="{look}"/>')

    def text(self, x: float, y: float, text: str, look: str = "", anchor: str = "start") -> None:
        """Write a line of text.

        Args:
            x: The position of the anchor.
            y: The position of the base line.
            text: The text.
            look: The CSS classes.
            anchor: Which part of the text is at `x`: `start`, `middle` or `end`.
        """
        attributes = "".join(
            f' {name}="{value}"'
            for name, value in (("class", look), ("text-anchor", anchor))
            if value not in ("", "start")
        )
        self._parts.append(f'<text x="{_n(x)}" y="{_n(y)}"{attributes}>{escape(clean(text))}</text>')

    def legend(self, entries: Iterable[tuple[str, str]], x: float, y: float, right: float) -> float:
        """Draw a legend of coloured boxes with names, in as many lines as are needed.

        Args:
            entries: The CSS classes and the name of each box.
            x: The left end of the lines.
            y: The base line of the first line.
            right: The right end of the lines.

        Returns:
            The base line of the last line.
        """
        place = x
        for look, name in entries:
            width = 16 + text_width(name) + 14
            if place + width > right and place > x:
                place, y = x, y + 18
            self.rectangle(place, y - 10, 11, 11, look)
            self.text(place + 16, y, name)
            place += width
        return y

    def to_svg(self, height: float) -> str:
        """Return the content of the SVG file.

        Args:
            height: The height of the drawing, in pixels.
        """
        size = f'width="{WIDTH}" height="{_n(height)}" viewBox="0 0 {WIDTH} {_n(height)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="t d">'
        words = (
            f'<title id="t">{escape(clean(self._title))}</title><desc id="d">{escape(clean(self._description))}</desc>'
        )
        ground = f'<rect width="{WIDTH}" height="{_n(height)}" class="paper"/>'
        return "\n".join([head, words, f"<style>{_STYLE}</style>", ground, *self._parts, "</svg>", ""])


def text_width(text: str) -> float:
    """Return the approximate width of a text in pixels."""
    return len(clean(text)) * LETTER


def clip(text: str, pixels: float) -> str:
    """Return a text that is cut, with an ellipsis at its end, if it is too wide.

    Args:
        text: The text.
        pixels: The largest width, in pixels.
    """
    most = max(1, int(pixels / LETTER))
    whole = clean(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def clean(text: str) -> str:
    """Return a text on a single line, without the control characters that XML forbids."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def byte_ticks(most: int, count: int = 6) -> Sequence[int]:
    """Return round sizes for the ticks of an axis, from 0 up to at least `most`.

    Args:
        most: The largest size on the axis, in bytes.
        count: The largest number of steps between ticks; a step is a power of two.
    """
    step = 1
    while step * count < most:
        step *= 2
    return range(0, -(-max(most, 1) // step) * step + 1, step)


def _n(number: float) -> str:
    return f"{round(number, 1) + 0.0:g}"
