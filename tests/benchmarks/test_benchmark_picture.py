"""The bar chart: its scale, and that what it draws is what it was given."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from ratios import Summary
from svg_chart import Panel, bar_chart, nice_step

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("largest", "step"), [(1.0, 0.2), (0.3, 0.1), (5.0, 1.0), (5.1, 2.0), (809.8, 200.0), (6000.0, 2000.0)]
)
def test_scale_has_at_most_five_round_steps(largest, step):
    assert nice_step(largest) == pytest.approx(step)


def draw(*panels):
    return ET.fromstring(bar_chart("A & B", ["small <print>"], ["theirs", "ours"], panels))


def bars(picture):
    return [rect for rect in picture.iter(f"{SVG}rect") if float(rect.get("width")) not in (12, 960)]


def test_bars_are_as_high_as_their_medians():
    picture = draw(Panel("MB/s", [("4K", [Summary(100, 90, 110), Summary(300, 250, 400)])]))
    theirs, ours = (float(bar.get("height")) for bar in bars(picture))
    assert ours == pytest.approx(3 * theirs, rel=0.01)


def test_a_range_is_a_line_from_lowest_to_highest():
    picture = draw(Panel("MB/s", [("4K", [Summary(100, 50, 200)])]))
    (bar,) = bars(picture)
    (line,) = [line for line in picture.iter(f"{SVG}line") if line.get("x1") == line.get("x2")]
    height, base = float(bar.get("height")), float(bar.get("y")) + float(bar.get("height"))
    assert base - float(line.get("y1")) == pytest.approx(2 * height, rel=0.01)
    assert base - float(line.get("y2")) == pytest.approx(height / 2, rel=0.01)


def test_everything_lies_within_the_picture():
    group = ("a", [Summary(3, 1, 1e6), Summary(9e5, 0, 9e5)])
    picture = draw(Panel("first", [group] * 7), Panel("second", [group]))
    width, height = map(float, picture.get("viewBox").split()[2:])
    for element in picture.iter():
        for name, limit in (
            ("x", width),
            ("x1", width),
            ("x2", width),
            ("y", height),
            ("y1", height),
            ("y2", height),
        ):
            assert 0 <= float(element.get(name, 0)) <= limit


def test_text_is_escaped_and_every_label_is_there():
    picture = draw(Panel("MB/s", [("4K", [None, Summary(0.5, 0.4, 0.6)])]))
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"A & B", "small <print>", "theirs", "ours", "MB/s", "4K", "0.50"} <= set(texts)
    assert len(bars(picture)) == 1
