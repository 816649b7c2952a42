"""The worker's sandbox: the process that handles guests' bytes can open, bind, connect to and execute nothing.

| wall | what it takes away |
|---|---|
| resource limits | processes, core dumps, locked memory, message queues |
| capabilities | all of them, out of every set, so that root is nobody special |
| Landlock | every path; from Linux 6.7 TCP bind and connect, from 6.12 abstract sockets and signals |
| seccomp (seccomp.py) | every system call but those on what the process has |

no_new_privs keeps all of them up.  If the kernel lacks one, the others stand.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import time

from virtserial.daemon.worker.seccomp import Process, worker_filter

_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPSET = 126
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_SECUREBITS = 0b11101111
"""NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, each locked, and KEEP_CAPS locked off."""

_SECCOMP = 317
_SECCOMP_SET_MODE_FILTER = 1
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_CREATE_RULESET_VERSION = 1

_LANDLOCK_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""The number of Landlock's rights on files, by the ABI that brought them."""
_LANDLOCK_NET_TCP = 3
_LANDLOCK_SCOPES = 3

_NO_MORE_OF = (resource.RLIMIT_NPROC, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE)


def confine(channel_fd: int) -> list[str]:
    """Put this process into the sandbox for good; return what the kernel lacks, a few words each.

    Import everything before.

    Args:
        channel_fd: the channel to the keeper, the only socket that may carry descriptors.
    """
    _keep_time_zone()
    for limit in _NO_MORE_OF:
        resource.setrlimit(limit, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    lacking = []
    if not _drop_capabilities(libc):
        lacking.append(f"dropping capabilities ({_reason()})")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return [*lacking, f"no_new_privs ({_reason()}), without which there are neither Landlock nor seccomp"]
    if not _enter_landlock(libc):
        lacking.append(f"Landlock ({_reason()})")
    if not _enter_seccomp(libc, Process(os.getpid(), channel_fd)):
        lacking.append(f"seccomp filters ({_reason()})")
    return lacking


def _reason() -> str:
    return os.strerror(ctypes.get_errno())


def _keep_time_zone() -> None:
    """Set TZ: without it libc opens /etc/localtime at every conversion."""
    os.environ.setdefault("TZ", ":/etc/localtime")
    time.tzset()


def _drop_capabilities(libc: ctypes.CDLL) -> bool:
    """Empty every set; without CAP_SETPCAP the bounding set stays, which no_new_privs makes harmless."""
    capability = 0
    while libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    libc.prctl(_PR_SET_SECUREBITS, _SECUREBITS, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    return bool(libc.syscall(_CAPSET, header, bytes(24)) == 0)


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


def _enter_seccomp(libc: ctypes.CDLL, process: Process) -> bool:
    instructions = worker_filter(process)
    program = _Program(len(instructions) // 8, instructions)
    return bool(libc.syscall(_SECCOMP, _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(program)) == 0)
