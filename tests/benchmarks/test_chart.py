"""The bar chart draws what it is given."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from chart import Panel, bar_chart, draw
from ratios import Summary

FOUR_K = ("4K", [Summary(100, 90, 110), Summary(300, 250, 400)])
PANEL = Panel("MB/s", [FOUR_K, ("32K", [None, Summary(0.5, 0.4, 0.6)])])
WORDS = ("A & B", ["small <print>"], ["theirs", "ours"])


def test_a_bar_is_as_high_as_its_median_and_its_line_is_the_range():
    (axes,) = draw(*WORDS, [PANEL]).axes
    assert [bar.get_height() for bar in axes.patches] == [100, 300, 0.5]
    ranges = [segment[:, 1].tolist() for lines in axes.collections for segment in lines.get_segments()]
    assert ranges == [[90, 110], [250, 400], pytest.approx([0.4, 0.6])]


def test_each_panel_has_a_scale_of_its_own_that_starts_at_zero():
    small = Panel("trips", [("1", [Summary(3, 1, 4), Summary(2, 0, 2)])])
    first, second = draw(*WORDS, [PANEL, small]).axes
    assert first.get_ylim()[0] == second.get_ylim()[0] == 0
    assert first.get_ylim()[1] >= 400 > 8 > second.get_ylim()[1] >= 4


def test_every_word_is_there_and_the_same_figures_give_the_same_file():
    picture = bar_chart(*WORDS, [PANEL])
    shown = {text.text.strip() for text in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")}
    assert {"A & B", "small <print>", "theirs", "ours", "MB/s", "4K", "32K", "100", "0.50"} <= shown
    assert bar_chart(*WORDS, [PANEL]) == picture
