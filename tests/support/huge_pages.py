"""Files of huge pages, for tests that may change the machine's pool of them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import tempfile
from pathlib import Path

import pytest

HUGE_PAGE = 2 << 20
POOL = Path("/proc/sys/vm/nr_hugepages")
_PUNCH_HOLE = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


@contextlib.contextmanager
def huge_page_pool(pages=2):
    """Add free huge pages to the machine's pool, one test at a time; skips where this process may not."""
    with Path(tempfile.gettempdir(), "virtserial-huge-pages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = POOL.read_text()
        try:
            POOL.write_text(str(int(before) + pages))
        except OSError:
            pytest.skip("this process may not reserve huge pages")
        try:
            if int(POOL.read_text()) < int(before) + pages:
                pytest.skip("this machine has no memory left for huge pages")
            yield
        finally:
            POOL.write_text(before)


@contextlib.contextmanager
def huge_page_file(seals):
    """Yield the descriptor of a sealed memfd of one huge page."""
    fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    try:
        os.ftruncate(fd, HUGE_PAGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)


def punch_hole(fd):
    """Take the file's page away, which no seal forbids, and leave none in the pool."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.fallocate(fd, _PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(HUGE_PAGE)) == 0
    POOL.write_text("0")
