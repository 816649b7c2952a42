"""Bars with ranges as SVG, drawn by matplotlib: panels one below the other, each with a scale of its own."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ratios import Summary

COLOURS = ("#8a8f98", "#c4a35a", "#2f6fbb", "#5a9e6f", "#a5548c")
WIDTH, PANEL, HEAD, LINE = 9.6, 2.3, 0.8, 0.16
"""Inches: of the picture, a panel, the title with its legend, and a line of small print."""
STYLE = {"svg.hashsalt": "virtserial", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
"""Text stays text, and the same figures give the same file."""
INSTALL = "matplotlib is needed for the picture: pip install 'virtserial[bench]'"


@dataclass(frozen=True, slots=True)
class Panel:
    """Groups of bars over one scale that starts at 0.

    Attributes:
        title: what the figures are, with their unit.
        groups: a label and one figure per series; None where a series has none.
    """

    title: str
    groups: Sequence[tuple[str, Sequence[Summary | None]]]


def can_draw() -> bool:
    """Whether matplotlib is installed (the extra `bench`)."""
    return importlib.util.find_spec("matplotlib") is not None


def bar_chart(title: str, notes: Sequence[str], series: Sequence[str], panels: Sequence[Panel]) -> str:
    """The picture as SVG: a bar is a median, the line over it the range.

    Args:
        title: the head line.
        notes: lines of small print below all panels.
        series: names of the series for the legend, in the order of each group's figures.
        panels: from top to bottom.
    """
    import matplotlib as mpl

    picture = io.StringIO()
    with mpl.rc_context(STYLE):
        figure = draw(title, notes, series, panels)
        figure.savefig(picture, format="svg", metadata={"Date": None, "Title": title})
    return picture.getvalue()


def draw(title: str, notes: Sequence[str], series: Sequence[str], panels: Sequence[Panel]) -> Figure:
    """The picture as a matplotlib figure, one Axes for each panel."""
    from matplotlib.figure import Figure

    height = HEAD + PANEL * len(panels) + LINE * (len(notes) + 1)
    figure = Figure(figsize=(WIDTH, height))
    figure.suptitle(title, fontsize=13, y=1 - 0.15 / height)
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _draw_panel(axes, panel, series)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(series), frameon=False,
                  bbox_to_anchor=(0.5, 1 - 0.4 / height))  # fmt: skip
    figure.text(0.02, 0.06 / height, "\n".join(notes), fontsize=7, color="#666666", verticalalignment="bottom")
    figure.tight_layout(rect=(0, LINE * (len(notes) + 1) / height, 1, 1 - HEAD / height))
    return figure


def _draw_panel(axes: Axes, panel: Panel, series: Sequence[str]) -> None:
    width = 0.8 / len(series)
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_xticks(range(len(panel.groups)), [label for label, _ in panel.groups])
    axes.grid(axis="y", color="#e3e3e3")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.margins(y=0.15)
    for number, name in enumerate(series):
        shown = [(place, figures[number]) for place, (_, figures) in enumerate(panel.groups)]
        bars = [(place + (number - (len(series) - 1) / 2) * width, figure) for place, figure in shown if figure]
        places = [place for place, _ in bars]
        medians = [figure.median for _, figure in bars]
        below = [figure.median - figure.lowest for _, figure in bars]
        above = [figure.highest - figure.median for _, figure in bars]
        drawn = axes.bar(
            places, medians, width * 0.95, label=name, color=COLOURS[number % len(COLOURS)],
            yerr=[below, above], error_kw={"ecolor": "#222222", "elinewidth": 1},
        )  # fmt: skip
        texts = [f"{median:.{0 if median >= 10 else 2}f}" for median in medians]
        axes.bar_label(drawn, texts, fontsize=8, padding=1)
    axes.set_ylim(bottom=0)
