"""Recordings: what is written can be read, limits and full disks end a recording and nothing else."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtserial.guest.recording import INPUT, MARK, OUTPUT, RESIZE, Recorder, Recording, RecordingError


def read(path):
    recording = Recording(str(path))
    try:
        return list(recording)
    finally:
        recording.close()


def test_a_console_s_recording_is_asciicast(tmp_path):
    recorder = Recorder(str(tmp_path / "a"), "vm/hvc0", (30, 100))
    recorder.record(OUTPUT, "grüß".encode())
    recorder.record(INPUT, b"ls\r")
    recorder.resize(30, 100)
    recorder.resize(40, 120)
    recorder.close()
    header, *events = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert {name: header[name] for name in ("version", "width", "height", "title")} == {
        "version": 2, "width": 100, "height": 30, "title": "vm/hvc0",
    }  # fmt: skip
    assert [event[1:] for event in events] == [["o", "grüß"], ["i", "ls\r"], ["r", "120x40"]]
    assert [event[0] for event in events] == sorted(event[0] for event in events)


def test_a_character_that_comes_in_two_pieces_stays_whole(tmp_path):
    recorder = Recorder(str(tmp_path / "a"), "t", (24, 80))
    for piece in ("ü".encode()[:1], "ü".encode()[1:], b"\xff!"):
        recorder.record(OUTPUT, piece)
    recorder.close()
    assert b"".join(event.data for event in read(tmp_path / "a")) == "ü\ufffd!".encode()


@given(pieces=st.lists(st.tuples(st.sampled_from([OUTPUT, INPUT]), st.binary(min_size=1)), max_size=20))
def test_a_port_s_recording_loses_no_byte(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("r") / "a"
    recorder = Recorder(str(path), "vm/port")
    for kind, data in pieces:
        recorder.record(kind, data)
    recorder.mark("away")
    recorder.close()
    assert [(event.kind, event.data) for event in read(path)] == [*pieces, (MARK, b"away")]


def test_the_limit_ends_a_recording_with_a_word(tmp_path):
    said = []
    recorder = Recorder(str(tmp_path / "a"), "t", limit=1000, say=said.append)
    for _ in range(100):
        recorder.record(OUTPUT, b"x" * 50)
    assert os.path.getsize(tmp_path / "a") <= 1000
    assert said == [f"the recording in {tmp_path}/a ends here: it has reached 1000 bytes"]
    assert recorder.ended
    assert {event.data for event in read(tmp_path / "a")} == {b"x" * 50}


def test_full_files_are_kept_up_to_a_number(tmp_path):
    recorder = Recorder(str(tmp_path / "a"), "t", limit=1000, keep=2)
    for number in range(100):
        recorder.record(OUTPUT, b"%02d" % number * 25)
    recorder.close()
    assert sorted(os.listdir(tmp_path)) == ["a", "a.1", "a.2"]
    assert all(os.path.getsize(tmp_path / name) <= 1000 for name in os.listdir(tmp_path))
    numbers = [int(event.data[:2]) for name in ("a.2", "a.1", "a") for event in read(tmp_path / name)]
    assert numbers == list(range(numbers[0], 100))


def test_a_full_disk_ends_a_recording_with_a_word(tmp_path):
    said = []
    (tmp_path / "full").symlink_to("/dev/full")
    recorder = Recorder(str(tmp_path / "full"), "t", say=said.append)
    recorder.record(OUTPUT, b"lost")
    recorder.record(OUTPUT, b"lost")
    recorder.close()
    assert said == [f"the recording in {tmp_path}/full ends here: No space left on device"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: no line of JSON"),
        ("{}\n", "no recording of virtserial or asciinema"),
        ('{"version": 1}\n', "no recording of virtserial or asciinema"),
        ("[" * 100000 + "\n", ":1: no line of JSON"),
        ('{"version": 2}\n[1]\n', ":2: not"),
        ('{"version": 2}\n["x", "o", "y"]\n', ":2: not"),
        ('{"version": 2}\n5\n', ":2: not"),
        ('{"version": 2, "virtserial": "virtserial-port"}\n[0, "o", "\\u1234"]\n', ":2: not"),
    ],
)
def test_what_is_no_recording_is_said(tmp_path, text, said):
    (tmp_path / "a").write_text(text)
    with pytest.raises(RecordingError, match=said):
        read(tmp_path / "a")


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    (tmp_path / "a").write_text('{"version": 2}\n[0, "o", "one"]\n[1, "r", "80x')
    assert [event.data for event in read(tmp_path / "a")] == [b"one"]
    assert RESIZE == "r"
