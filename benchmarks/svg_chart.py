"""Bars with ranges as SVG: panels one below the other, each with a scale of its own."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratios import Summary

WIDTH, LEFT, RIGHT = 960, 70, 20
PANEL_HEIGHT, PANEL_TOP, PANEL_BOTTOM = 230, 34, 32
HEAD, LINE = 66, 15
COLOURS = ("#8a8f98", "#c4a35a", "#2f6fbb", "#5a9e6f", "#a5548c")
TEXT = 'font-family="sans-serif" font-size="{size}" fill="{fill}" text-anchor="{anchor}"'


@dataclass(frozen=True)
class Panel:
    """Groups of bars over one scale that starts at 0.

    Attributes:
        title: what the figures are, with their unit.
        groups: a label and one figure per series; None where a series has none.
    """

    title: str
    groups: Sequence[tuple[str, Sequence[Summary | None]]]


def bar_chart(title: str, notes: Sequence[str], series: Sequence[str], panels: Sequence[Panel]) -> str:
    """The picture: a bar is a median, the line over it the range.

    Args:
        title: the head line.
        notes: lines of small print below all panels.
        series: names of the series for the legend, in the order of each group's figures.
        panels: from top to bottom.
    """
    height = HEAD + PANEL_HEIGHT * len(panels) + LINE * len(notes) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 26, title, 17, anchor="start"),
    ]
    x = LEFT
    for number, name in enumerate(series):
        parts.append(f'<rect x="{x}" y="38" width="12" height="12" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(_text(x + 18, 49, name, 13, anchor="start"))
        x += 40 + 8 * len(name)
    for number, panel in enumerate(panels):
        parts += _panel(panel, HEAD + number * PANEL_HEIGHT)
    bottom = HEAD + len(panels) * PANEL_HEIGHT
    parts += [
        _text(LEFT, bottom + LINE * (1 + n), note, 11, "#666666", "start") for n, note in enumerate(notes)
    ]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: int) -> list[str]:
    floor = top + PANEL_HEIGHT - PANEL_BOTTOM
    span = floor - top - PANEL_TOP
    largest = max(
        (figure.highest for _, figures in panel.groups for figure in figures if figure), default=1.0
    )
    step = nice_step(largest)
    ceiling = step * -(-largest // step)
    parts = [_text(LEFT, top + 16, panel.title, 13, anchor="start")]
    for tick in range(round(ceiling / step) + 1):
        y = floor - span * tick * step / ceiling
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e3e3e3"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick * step:g}", 11, "#666666", "end"))
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(panel.groups))
    for place, (label, figures) in enumerate(panel.groups):
        width = min(46.0, slot * 0.8 / max(1, len(figures)))
        start = LEFT + slot * (place + 0.5) - width * len(figures) / 2
        parts.append(_text(LEFT + slot * (place + 0.5), floor + 18, label, 12))
        for number, figure in enumerate(figures):
            if figure:
                parts += _bar(start + number * width, width, floor, span / ceiling, figure, number)
    return parts


def _bar(x: float, width: float, floor: int, scale: float, figure: Summary, number: int) -> list[str]:
    top, high, low = (floor - scale * value for value in (figure.median, figure.highest, figure.lowest))
    middle = x + width / 2
    colour = COLOURS[number % len(COLOURS)]
    return [
        f'<rect x="{x + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" height="{floor - top:.1f}" fill="{colour}"/>',
        f'<line x1="{middle:.1f}" y1="{high:.1f}" x2="{middle:.1f}" y2="{low:.1f}" stroke="#222222"/>',
        _text(middle, high - 4, f"{figure.median:.{0 if figure.median >= 10 else 2}f}", 11),
    ]


def nice_step(largest: float) -> float:
    """1, 2 or 5 times a power of ten: the distance of scale lines, at most five of which reach a positive figure."""
    step = 1e-9
    while True:
        for factor in (1, 2, 5):
            if largest <= step * factor * 5:
                return step * factor
        step *= 10


def _text(x: float, y: float, text: str, size: int, fill: str = "#222222", anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {TEXT.format(size=size, fill=fill, anchor=anchor)}>{escape(text)}</text>'
