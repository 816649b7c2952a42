"""The newc writer, read back by its format's own rules."""

from __future__ import annotations

import stat

from virtserial.rig.cpio import CpioArchive


def entries(archive):
    """Name -> (mode, data, device) of every entry, in order, the trailer left out."""
    found, offset = {}, 0
    while True:
        assert offset % 4 == 0
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        name_end = offset + 110 + fields[11]
        assert archive[name_end - 1] == 0
        name = archive[offset + 110 : name_end - 1].decode()
        data = (name_end + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[data : data + fields[6]], (fields[9], fields[10]))
        offset = (data + fields[6] + 3) // 4 * 4


def test_file_carries_mode_and_data():
    archive = CpioArchive()
    archive.add_file("init", b"#!/bin/sh\n", 0o755)
    assert entries(archive.finish()) == {"init": (stat.S_IFREG | 0o755, b"#!/bin/sh\n", (0, 0))}


def test_parents_come_before_their_children_and_once():
    archive = CpioArchive()
    archive.add_file("a/b/one", b"1")
    archive.add_file("a/b/two", b"22")
    found = entries(archive.finish())
    assert list(found) == ["a", "a/b", "a/b/one", "a/b/two"]
    assert stat.S_ISDIR(found["a/b"][0])


def test_odd_lengths_are_padded():
    archive = CpioArchive()
    for length in range(9):
        archive.add_file("f" * (length + 1), bytes([length]) * length)
    found = entries(archive.finish())
    assert [len(data) for _, data, _ in found.values()] == list(range(9))


def test_links_and_devices():
    archive = CpioArchive()
    archive.add_link("bin/sh", "busybox")
    archive.add_character_device("dev/console", 5, 1)
    found = entries(archive.finish())
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox", (0, 0))
    assert found["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
