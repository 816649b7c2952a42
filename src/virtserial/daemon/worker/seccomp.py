"""The system calls a worker may make, as a seccomp filter (Linux, x86-64): every other one fails with EPERM.

What is left works on descriptors that the worker has, on its own memory, and on time.  A filter cannot look at what a
pointer points to, so no call that takes a path or an address is allowed at all.
"""

from __future__ import annotations

import errno
import struct

AUDIT_ARCH_X86_64 = 0xC000003E
X32_SYSCALL_BIT = 0x40000000

# <linux/bpf_common.h>
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

# <linux/seccomp.h>
_KILL_PROCESS = 0x80000000
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM

# struct seccomp_data: number, architecture, instruction pointer, six arguments; the low halves come first.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

ALLOWED = {
    # The data path first: the filter is read from its beginning.
    "epoll_wait": 232, "readv": 19, "writev": 20, "write": 1, "recvmsg": 47, "sendmsg": 46, "read": 0, "futex": 202,
    "recvfrom": 45, "epoll_ctl": 233, "setsockopt": 54, "pread64": 17, "pwrite64": 18, "preadv": 295, "pwritev": 296,
    "preadv2": 327, "pwritev2": 328, "clock_gettime": 228, "select": 23, "pselect6": 270, "poll": 7, "ppoll": 271,
    "epoll_pwait": 281, "epoll_pwait2": 441, "epoll_create1": 291,
    # Descriptors.
    "close": 3, "close_range": 436, "fstat": 5, "lseek": 8, "ftruncate": 77, "dup": 32, "shutdown": 48,
    "getsockopt": 55, "getsockname": 51, "getpeername": 52,
    # Memory.
    "munmap": 11, "mremap": 25, "madvise": 28, "brk": 12, "membarrier": 324,
    # Time, signals of its own, and its end.
    "nanosleep": 35, "clock_nanosleep": 230, "clock_getres": 229, "gettimeofday": 96, "time": 201,
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sigaltstack": 131, "restart_syscall": 219,
    "exit": 60, "exit_group": 231, "getpid": 39, "gettid": 186, "getppid": 110, "getuid": 102, "geteuid": 107,
    "getgid": 104, "getegid": 108, "getrandom": 318, "getrusage": 98, "getrlimit": 97, "sched_yield": 24, "uname": 63,
    "set_robust_list": 273, "rseq": 334,
}  # fmt: skip
"""By name, their numbers."""

_IOCTL, _FCNTL, _MMAP, _MPROTECT, _SENDTO, _NEWFSTATAT, _TGKILL, _PRLIMIT = 16, 72, 9, 10, 44, 262, 234, 302
_PROT_EXEC = 4
_AT_EMPTY_PATH = 0x1000

IOCTLS = {
    "TCGETS": 0x5401, "TIOCOUTQ": 0x5411, "TIOCGWINSZ": 0x5413, "FIONREAD": 0x541B, "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450, "FIOCLEX": 0x5451,
}  # fmt: skip
FCNTLS = {
    "F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_SETFL": 4, "F_GETLK": 5, "F_SETLK": 6,
    "F_SETLKW": 7, "F_DUPFD_CLOEXEC": 1030, "F_GET_SEALS": 1034,
}  # fmt: skip


def worker_filter(pid: int) -> bytes:
    """Return the filter's program, an array of struct sock_filter, for the process `pid`."""
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, AUDIT_ARCH_X86_64, 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
        _instruction(_AT_LEAST, X32_SYSCALL_BIT, 0, 1),
        _instruction(_RETURN, _KILL_PROCESS),
    ]
    for number in ALLOWED.values():
        program += [_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, _ALLOW)]
    program += _when(_IOCTL, _argument_is(1, *IOCTLS.values()))
    program += _when(_FCNTL, _argument_is(1, *FCNTLS.values()))
    for number in (_MMAP, _MPROTECT):
        # No code comes into being that was not there.
        program += _when(number, _argument_lacks(2, _PROT_EXEC))
    # No address: a socket that a VMM has passed must not send where its maker could not.
    program += _when(_SENDTO, _pointer_is_null(4))
    # Limits are looked at, not set.
    program += _when(_PRLIMIT, _pointer_is_null(2))
    program += _when(_NEWFSTATAT, _argument_is(3, _AT_EMPTY_PATH))
    program += _when(_TGKILL, _argument_is(0, pid))
    program.append(_instruction(_RETURN, _REFUSE))
    return b"".join(program)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _when(number: int, decision: list[bytes]) -> list[bytes]:
    """The decision, which returns, for one system call."""
    return [_instruction(_EQUAL, number, 0, len(decision)), *decision]


def _argument_is(index: int, *values: int) -> list[bytes]:
    decision = [_instruction(_LOAD, _ARGUMENTS + 8 * index)]
    for value in values:
        decision += [_instruction(_EQUAL, value, 0, 1), _instruction(_RETURN, _ALLOW)]
    return [*decision, _instruction(_RETURN, _REFUSE)]


def _argument_lacks(index: int, bits: int) -> list[bytes]:
    return [
        _instruction(_LOAD, _ARGUMENTS + 8 * index),
        _instruction(_ANY_BIT, bits, 0, 1),
        _instruction(_RETURN, _REFUSE),
        _instruction(_RETURN, _ALLOW),
    ]


def _pointer_is_null(index: int) -> list[bytes]:
    return [
        _instruction(_LOAD, _ARGUMENTS + 8 * index),
        _instruction(_EQUAL, 0, 0, 3),
        _instruction(_LOAD, _ARGUMENTS + 8 * index + 4),
        _instruction(_EQUAL, 0, 0, 1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _REFUSE),
    ]
