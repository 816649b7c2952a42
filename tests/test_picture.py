"""The picture in README.md is the recorded demonstration, drawn by docs/picture.py."""

import importlib.util
import sys
from xml.etree import ElementTree as ET

import pytest
from support.places import ROOT

from virtserial.guest.recording import OUTPUT, Recorder, Recording

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def picture():
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs/picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(ROOT / "src"))
    return module


def test_the_picture_is_drawn_from_the_recording(picture):
    recording = Recording(str(ROOT / "docs/demo.cast"))
    assert recording.title.startswith("./scripts/demo")
    assert picture.draw(recording) == (ROOT / "docs/demo.svg").read_text()
    recording.close()


def test_the_last_screen_says_that_all_files_arrived(picture):
    recording = Recording(str(ROOT / "docs/demo.cast"))
    _, lines = picture.screens(recording)[-1]
    recording.close()
    text = ["".join(character for character, _ in line) for line in lines]
    assert any(line.startswith("all sha1sums are equal") for line in text)
    assert not any(len(line) > picture.COLUMNS for line in text)


def test_a_line_that_is_drawn_again_is_in_its_place(picture):
    screen = picture.Screen()
    screen.feed("first\r\nsecond\r\n\x1b[2A\x1b[J\x1b[32mthird\x1b[0m\x1b[K\r\nfo")
    lines = ["".join(character for character, _ in line) for line in screen.visible()]
    assert lines == ["third", "fo"]
    assert screen.lines[0][0] == ("t", "32")


def test_equal_lines_are_drawn_once_and_text_is_escaped(picture, tmp_path):
    path = str(tmp_path / "cast")
    recorder = Recorder(path, 'a "title"', (picture.ROWS, picture.COLUMNS))
    recorder.record(OUTPUT, b"<same> & line\r\n<same> & line\r\n")
    recorder.close()
    recording = Recording(path)
    tree = ET.fromstring(picture.draw(recording))
    recording.close()
    assert tree.get("aria-label") == 'A terminal: a "title"'
    assert [text.text for text in tree.iter(f"{SVG}tspan")] == ["<same> & line"]
    assert len(list(tree.iter(f"{SVG}use"))) == 2
