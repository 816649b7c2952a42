"""A receiver whose sender is hostile: nothing outside of its folder, no endless memory, clear errors."""

from __future__ import annotations

import hashlib
import os

import pytest
from support.transfer_pair import SpokenSender

from virtserial.guest.errors import ProtocolError
from virtserial.guest.files import messages as wire

NOTHING = hashlib.sha256().digest()


def sha(content):
    return hashlib.sha256(content).digest()


@pytest.fixture
def outside(tmp_path):
    """A folder beside the target that must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("untouched")
    yield folder
    assert os.listdir(folder) == ["file"]
    assert (folder / "file").read_text() == "untouched"


@pytest.fixture
def sender(tmp_path, outside):
    with SpokenSender(tmp_path / "to") as sender:
        yield sender


@pytest.mark.parametrize(
    "path",
    [
        b"", b"/", b"/etc/x", b"..", b"../outside/x", b"a/../../outside/x", b"a//b", b"a/", b"./a", b"a/.", b"a\0b",
        b"n" * 256, b"d/" * 200 + b"x", (b"x" * 200 + b"/") * 30 + b"x",
    ],
)  # fmt: skip
def test_path_that_could_leave_the_folder_or_is_none_ends_the_transfer(sender, path):
    with pytest.raises(ProtocolError, match="path"):
        sender.entry(0, wire.FILE, path)


def test_file_through_a_link_of_the_sender_s_is_refused(tmp_path, outside):
    with SpokenSender(tmp_path / "to", all_links=True) as sender:
        sender.entry(0, wire.LINK, b"way", target=b"../outside")
        sender.file(1, b"way/file", b"evil", sha(b"evil"))
        sender.entry(2, wire.FOLDER, b"way/folder")
        sender.entry(3, wire.FOLDER_END, b"way", mode=0)
        sender.entry(4, wire.LINK, b"way/link", target=b"x")
    assert [bool(reason) for _, reason in sender.done] == [False, True, True, True, True]
    assert os.readlink(tmp_path / "to" / "way") == "../outside"


def test_file_replaces_a_link_instead_of_following_it(tmp_path, outside):
    with SpokenSender(tmp_path / "to", all_links=True) as sender:
        sender.entry(0, wire.LINK, b"file", target=b"../outside/file")
        sender.file(1, b"file", b"new", sha(b"new"))
    assert sender.done == [(0, ""), (1, "")]
    assert (tmp_path / "to" / "file").read_bytes() == b"new"


def test_partial_folder_that_is_a_link_is_not_used(tmp_path, outside):
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / os.fsdecode(b".virtserial-partial")).symlink_to(outside)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        SpokenSender(tmp_path / "to")


@pytest.mark.parametrize("path", [b".virtserial-partial", b".virtserial-partial/x"])
def test_partial_folder_is_not_the_sender_s(sender, path):
    sender.file(0, path, b"", NOTHING)
    assert sender.done == [(0, "the name is taken for files that are being received")]


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        (b"a", b"b", True), (b"a", b"x/y/z", True), (b"d/a", b"../b", True), (b"d/e/a", b"../../b", True),
        (b"a", b"./b", True), (b"a", b"/etc/passwd", False), (b"a", b"..", False), (b"a", b"../outside/file", False),
        (b"d/a", b"../..", False), (b"d/a", b"../../x", False), (b"a", b"b/../c", False), (b"d/a", b"./../../x", False),
        (b"a", b"...", True),
    ],
)  # fmt: skip
def test_links_that_lead_out_are_refused(sender, path, target, inside):
    sender.entry(0, wire.LINK, path, target=target)
    assert sender.done == [(0, "" if inside else "the symbolic link leads out of the folder")]


def test_content_that_is_not_what_its_digest_says_does_not_arrive(sender, tmp_path):
    sender.file(0, b"file", b"content", sha(b"other"))
    assert sender.done == [(0, "the file that came is not the one that was sent")]
    assert not (tmp_path / "to" / "file").exists()


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (wire.DATA, wire.pack_position(0, 5) + b"x"),
        (wire.DATA, wire.pack_position(0, 0) + b"x" * 11),
        (wire.DATA, wire.pack_position(1, 0) + b"x"),
        (wire.DATA, b"short"),
        (wire.HOLE, wire.pack_hole(0, 0, 11)),
        (wire.HOLE, wire.pack_hole(0, 0, wire.MAX_HOLE + 1)),
        (wire.HOLE, wire.pack_hole(0, 0, 0)),
        (wire.HOLE, b""),
        (wire.END, wire.pack_end(7, NOTHING, "")),
        (wire.END, wire.pack_end(0, NOTHING, "")[:-1]),
        (wire.END, b""),
        (wire.FINISH, b""),
        (wire.GOODBYE, b""),
        (wire.WANT, bytes(48)),
        (wire.DONE, bytes(8)),
        (wire.RESULT, bytes(24)),
        (200, b""),
        (wire.ENTRY, b""),
        (wire.ENTRY, wire.Entry(2, wire.FILE, b"gap").pack()),
        (wire.ENTRY, wire.Entry(1, 9, b"unknown").pack()),
        (wire.ENTRY, wire.Entry(1, wire.FILE, b"huge", size=1 << 63).pack()),
        (wire.ENTRY, wire.Entry(1, wire.FOLDER, b"sized", size=1).pack()),
        (wire.ENTRY, wire.Entry(1, wire.LINK, b"no target").pack()),
        (wire.ENTRY, wire.Entry(1, wire.LINK, b"long", target=b"t" * 5000).pack()),
        (wire.ENTRY, wire.Entry(1, wire.LINK, b"nul", target=b"a\0").pack()),
        (wire.ENTRY, wire.Entry(1, wire.FILE, b"file", target=b"target").pack()),
        (wire.ENTRY, wire.Entry(1, wire.FILE, b"cut").pack()[:-1]),
    ],
)
def test_message_out_of_order_or_shape_ends_the_transfer(sender, kind, payload):
    sender.entry(0, wire.FILE, b"file", size=10)
    with pytest.raises(ProtocolError):
        sender.say(kind, payload)


def test_more_entries_ahead_than_allowed_end_the_transfer(sender):
    for number in range(wire.WINDOW):
        sender.entry(number, wire.FILE, b"%d" % number, size=1)
    with pytest.raises(ProtocolError, match="more than 128 entries ahead"):
        sender.entry(wire.WINDOW, wire.FILE, b"one more", size=1)


def test_times_beyond_all_clocks_are_told(sender):
    sender.file(0, b"file", b"", NOTHING, modified=(1 << 63) - 1)
    sender.entry(1, wire.FOLDER, b"folder")
    sender.entry(2, wire.FOLDER_END, b"folder", mode=0o700, modified=-(1 << 63))
    assert [number for number, _ in sender.done] == [0, 1, 2]


def test_folder_in_the_place_of_a_file_and_the_reverse_are_told(sender, tmp_path):
    (tmp_path / "to" / "folder").mkdir()
    (tmp_path / "to" / "file").touch()
    sender.file(0, b"folder", b"x", sha(b"x"))
    sender.entry(1, wire.FOLDER, b"file")
    sender.file(2, b"file/in", b"x", sha(b"x"))
    sender.entry(3, wire.LINK, b"folder", target=b"x")
    assert [bool(reason) for _, reason in sender.done] == [True] * 4
    assert (tmp_path / "to" / "folder").is_dir()


def test_reasons_and_names_of_the_sender_s_draw_nothing_on_a_terminal(sender):
    sender.entry(0, wire.FILE, b"\x1b[2Jname\n", size=1)
    sender.say(wire.END, wire.pack_end(0, b"", "\x1b]0;title\x07 reason\r\n"))
    (complaint,) = sender.complaints
    assert complaint.isprintable()


def test_huge_hole_costs_no_disk(sender, tmp_path):
    size = 4 * wire.MAX_HOLE
    sender.entry(0, wire.FILE, b"zeros", size=size)
    for start in range(0, size, wire.MAX_HOLE):
        sender.say(wire.HOLE, wire.pack_hole(0, start, wire.MAX_HOLE))
    digest = hashlib.sha256()
    for _ in range(size >> 20):
        digest.update(bytes(1 << 20))
    sender.say(wire.END, wire.pack_end(0, digest.digest(), ""))
    assert sender.done == [(0, "")]
    assert (tmp_path / "to" / "zeros").stat().st_blocks * 512 < 1 << 20
