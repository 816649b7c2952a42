"""The worker's sandbox: a process through which a guest's bytes run can open, bind, connect to and execute nothing.

Three walls, each of its own kind: resource limits; Landlock, which takes away every path and (from Linux 6.7 and 6.12
on) TCP and abstract sockets; and seccomp, which leaves only system calls on what the process has.  None can be taken
down again (no_new_privs).  Where the kernel lacks one, the others stand.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import time

from virtserial.daemon.worker.seccomp import worker_filter

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP = 317
_SECCOMP_SET_MODE_FILTER = 1
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_CREATE_RULESET_VERSION = 1

_LANDLOCK_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""From which ABI on Landlock knows how many rights on files."""
_LANDLOCK_NET_TCP = 3
_LANDLOCK_SCOPES = 3

_NO_MORE_OF = (resource.RLIMIT_NPROC, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE)


def confine() -> list[str]:
    """Put this process into the sandbox for good; return what the kernel lacks, a few words each.

    Everything that is to be imported has been by now.
    """
    _keep_time_zone()
    for limit in _NO_MORE_OF:
        resource.setrlimit(limit, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return [f"no_new_privs ({_reason()}), without which there are neither Landlock nor seccomp"]
    lacking = []
    if not _enter_landlock(libc):
        lacking.append(f"Landlock ({_reason()})")
    if not _enter_seccomp(libc):
        lacking.append(f"seccomp filters ({_reason()})")
    return lacking


def _reason() -> str:
    return os.strerror(ctypes.get_errno())


def _keep_time_zone() -> None:
    """libc looks for /etc/localtime anew with every conversion, unless TZ says that it is where it was."""
    os.environ.setdefault("TZ", ":/etc/localtime")
    time.tzset()


def _enter_landlock(libc: ctypes.CDLL) -> bool:
    """Take away all rights that this kernel's Landlock knows."""
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION)
    if version < 1:
        return False
    rights = max(count for since, count in _LANDLOCK_FS_RIGHTS.items() if since <= version)
    rules = struct.pack("<Q", (1 << rights) - 1)
    if version >= 4:
        rules += struct.pack("<Q", _LANDLOCK_NET_TCP)
    if version >= 6:
        rules += struct.pack("<Q", _LANDLOCK_SCOPES)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)
    if ruleset < 0:
        return False
    try:
        return bool(libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _enter_seccomp(libc: ctypes.CDLL) -> bool:
    instructions = worker_filter(os.getpid())
    program = _Program(len(instructions) // 8, instructions)
    return bool(libc.syscall(_SECCOMP, _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(program)) == 0)
