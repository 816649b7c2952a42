"""The messages of /dev/cuse: the eight of FUSE's that a character device needs (Linux: include/uapi/linux/fuse.h).

A request is an InHeader, the operation's own structure, and for WRITE the data; one read returns all of it.  A reply is
an OutHeader and the operation's answer, in one write.  All fields are in the machine's byte order.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from typing import Self

FUSE_OPEN: Final = 14
FUSE_READ: Final = 15
FUSE_WRITE: Final = 16
FUSE_RELEASE: Final = 18
FUSE_INTERRUPT: Final = 36
FUSE_IOCTL: Final = 39
FUSE_POLL: Final = 40
CUSE_INIT: Final = 4096
WITHOUT_REPLY: Final = frozenset({2, FUSE_INTERRUPT, 42})
"""FORGET, INTERRUPT, BATCH_FORGET."""

FUSE_KERNEL_VERSION: Final = 7
OLDEST_MINOR_VERSION: Final = 11
"""The first minor version with CUSE."""
KNOWN_MINOR_VERSION: Final = 31
FUSE_POLL_SCHEDULE_NOTIFY: Final = 1 << 0
FUSE_NOTIFY_POLL: Final = 1
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_NONSEEKABLE: Final = 1 << 2

MAX_TRANSFER: Final = 32768
"""The most bytes that one read or write moves: Linux's console driver cuts writes there (port_fops_write)."""
MAX_REQUEST_DATA: Final = MAX_TRANSFER + 4096
"""The request size that we announce to the kernel.  After a request that was served whole the kernel sends another,
so requests must be larger than any answer: then one call of an application moves at most MAX_TRANSFER bytes."""

IN_HEADER: Final = Struct("=IIQQIIII")
"""struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, padding."""
OUT_HEADER: Final = Struct("=IiQ")
"""struct fuse_out_header: len, error (a negated errno, or a notification's code), unique (0 for a notification)."""
INIT_IN: Final = Struct("=IIII")
"""struct cuse_init_in: major, minor, unused, flags."""
INIT_OUT: Final = Struct("=IIIIIIII40x")
"""struct cuse_init_out: major, minor, unused, flags, max_read, max_write, dev_major, dev_minor, spare."""
OPEN_OUT: Final = Struct("=QIi")
"""struct fuse_open_out: fh, open_flags, padding."""
READ_IN: Final = Struct("=QQIIQII")
"""struct fuse_read_in and fuse_write_in: fh, offset, size, read_flags or write_flags, lock_owner, flags (of the open
file, as fcntl's F_GETFL has them), padding."""
WRITE_OUT: Final = Struct("=II")
"""struct fuse_write_out: size, padding."""
INTERRUPT_IN: Final = Struct("=Q")
"""struct fuse_interrupt_in: unique of the request to cancel."""
POLL_IN: Final = Struct("=QQII")
"""struct fuse_poll_in: fh, kh (what a wake-up names), flags, events."""
POLL_OUT: Final = Struct("=II")
"""struct fuse_poll_out: revents, padding."""
WAKEUP_OUT: Final = Struct("=Q")
"""struct fuse_notify_poll_wakeup_out: kh."""

HEAD_SIZE: Final = IN_HEADER.size + READ_IN.size
"""Offset of a WRITE's data; requests without data are not longer than this, except for an IOCTL's own data."""


class Request(NamedTuple):
    """A request without its data.

    Attributes:
        opcode: FUSE_* or CUSE_INIT.
        unique: its id, which the reply repeats.
        body: the operation's structure; it may be cut.
    """

    opcode: int
    unique: int
    body: bytes

    @classmethod
    def parse(cls, head: bytes) -> Self | None:
        """Parse the first HEAD_SIZE bytes of a request; None if its header is incomplete."""
        if len(head) < IN_HEADER.size:
            return None
        _, opcode, unique, *_ = IN_HEADER.unpack_from(head)
        return cls(opcode, unique, bytes(head[IN_HEADER.size :]))


def init_reply(minor: int, device_name: str) -> bytes:
    """The payload of the answer to CUSE_INIT; the device appears as /dev/DEVICE_NAME with a number of the kernel's."""
    version = min(minor, KNOWN_MINOR_VERSION)
    fixed = INIT_OUT.pack(FUSE_KERNEL_VERSION, version, 0, 0, MAX_REQUEST_DATA, MAX_REQUEST_DATA, 0, 0)
    return fixed + f"DEVNAME={device_name}\0".encode()


def reply_header(unique: int, error: int, payload: int) -> bytes:
    """The header of a reply with `payload` bytes, or of a refusal with the errno `error`."""
    return OUT_HEADER.pack(OUT_HEADER.size + payload, -error, unique)


def poll_wakeup(handle: int) -> bytes:
    """The notification that makes the kernel poll an open file again."""
    return OUT_HEADER.pack(OUT_HEADER.size + WAKEUP_OUT.size, FUSE_NOTIFY_POLL, 0) + WAKEUP_OUT.pack(handle)
