"""Paths that stand for a descriptor of this process: as QEMU does it, they are duplicated and not opened anew."""

from __future__ import annotations

import fcntl
import os

import pytest

from virtserial.chardev.opened_path import open_path
from virtserial.chardev.reach import ANYWHERE


def test_path_is_opened_made_and_never_waited_for(tmp_path):
    fd = open_path(str(tmp_path / "new"), os.O_WRONLY | os.O_CREAT, ANYWHERE)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    assert not os.get_inheritable(fd)
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        open_path(str(tmp_path / "none"), os.O_RDONLY, ANYWHERE)


def test_descriptor_is_duplicated_with_its_position(tmp_path):
    with open(tmp_path / "file", "wb", buffering=0) as file:
        file.write(b"one ")
        fd = open_path(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY, ANYWHERE)
        os.write(fd, b"two ")
        os.close(fd)
        file.write(b"three")
    assert (tmp_path / "file").read_bytes() == b"one two three"


def test_descriptor_without_a_name_or_the_right_to_it_will_do():
    reader, writer = os.pipe()
    os.chmod(f"/proc/self/fd/{writer}", 0)
    fd = open_path(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_TRUNC | os.O_APPEND, ANYWHERE)
    os.write(fd, b"x")
    assert os.read(reader, 2) == b"x"
    for each in (reader, writer, fd):
        os.close(each)


def test_file_of_a_descriptor_is_emptied_or_appended_to_as_asked(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with open(tmp_path / "file", "r+b") as file:
        fd = open_path(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_APPEND, ANYWHERE)
        os.write(fd, b" new")
        os.close(fd)
        assert (tmp_path / "file").read_bytes() == b"old new"
        os.close(open_path(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_TRUNC, ANYWHERE))
        assert (tmp_path / "file").read_bytes() == b""


def test_descriptor_that_is_not_open_is_an_error():
    with pytest.raises(OSError, match="Bad file descriptor"):
        open_path("/proc/self/fd/987654", os.O_WRONLY, ANYWHERE)
