"""The system calls that a worker may make, as a seccomp filter (Linux, x86-64); every other one fails with EPERM.

`CALLS` is the whole policy: a name, a number, a reason, and conditions on arguments.  A filter sees arguments but not
what they point to, so no call that takes a path is in the table, and a call that takes an address is there only where a
condition rules the address out.  docs/security.md prints this table; tests/daemon/test_daemon_sandbox.py compares both.

libseccomp would assemble the same program, but the device runs on the standard library alone.
"""

from __future__ import annotations

import errno
import struct
from typing import Protocol

from virtserial.channel.record import record

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


@record
class Process:
    """The numbers of one worker that conditions compare with: its process id and its channel's descriptor."""

    pid: int
    channel_fd: int


class Condition(Protocol):
    """A rule for one argument.  `code` falls through where the rule holds, and refuses the call where not."""

    @property
    def text(self) -> str: ...
    def code(self, process: Process) -> list[bytes]: ...


@record
class OneOf:
    """A 32-bit argument is one of these values."""

    argument: int
    what: str
    values: dict[str, int]

    @property
    def text(self) -> str:
        return f"{self.what}: {', '.join(self.values)}"

    def code(self, process: Process) -> list[bytes]:
        count = len(self.values)
        tests = [_instruction(_EQUAL, value, count - index, 0) for index, value in enumerate(self.values.values())]
        return [_load(self.argument), *tests, _instruction(_RETURN, _REFUSE)]


@record
class Without:
    """A 32-bit argument has none of these bits."""

    argument: int
    what: str
    bits: int

    @property
    def text(self) -> str:
        return f"without {self.what}"

    def code(self, process: Process) -> list[bytes]:
        return [_load(self.argument), _instruction(_ANY_BIT, self.bits, 0, 1), _instruction(_RETURN, _REFUSE)]


@record
class Null:
    """A pointer is NULL."""

    argument: int
    what: str

    @property
    def text(self) -> str:
        return f"{self.what} is NULL"

    def code(self, process: Process) -> list[bytes]:
        return [
            _load(self.argument),
            _instruction(_EQUAL, 0, 0, 2),
            _load(self.argument, high=True),
            _instruction(_EQUAL, 0, 1, 0),
            _instruction(_RETURN, _REFUSE),
        ]


@record
class Own:
    """A 32-bit argument is, or is not, the process's own id or channel."""

    argument: int
    what: str
    of: str
    equal: bool = True

    @property
    def text(self) -> str:
        return self.what

    def code(self, process: Process) -> list[bytes]:
        value = process.pid if self.of == "pid" else process.channel_fd
        jumps = (1, 0) if self.equal else (0, 1)
        return [_load(self.argument), _instruction(_EQUAL, value, *jumps), _instruction(_RETURN, _REFUSE)]


@record
class Call:
    """A system call that is allowed where all its conditions hold."""

    name: str
    number: int
    reason: str
    conditions: tuple[Condition, ...] = ()


_SOL_SOCKET = OneOf(1, "level", {"SOL_SOCKET": 1})
_QUIET_FLAGS = ~(0x40 | 0x4000 | 0x8000) & 0xFFFFFFFF
"""All flags of send(2) but MSG_DONTWAIT, MSG_NOSIGNAL and MSG_MORE: above all not MSG_FASTOPEN, MSG_OOB."""

CALLS = (
    # The data path first: the kernel reads the filter from its start.
    Call("epoll_wait", 232, "wait for descriptors"),
    Call("epoll_pwait", 281, "the same, in C libraries other than glibc"),
    Call("readv", 19, "a host's bytes into guest memory"),
    Call("writev", 20, "guest memory to a host"),
    Call("write", 1, "interrupts (eventfds), replies, the log"),
    Call("recvmsg", 47, "the VMM's messages and their descriptors, the channel"),
    Call("sendto", 44, "replies to the VMM, UDP datagrams to the connected peer, the journal",
         (Null(4, "the address"), Without(3, "flags but MSG_DONTWAIT, MSG_NOSIGNAL, MSG_MORE", _QUIET_FLAGS))),
    Call("ppoll", 271, "wait for less than a millisecond"),
    Call("recvfrom", 45, "peek at messages, take them off"),
    Call("read", 0, "eventfds, ptys, files"),
    Call("sendfile", 40, "a guest's output to each of several clients"),
    Call("epoll_ctl", 233, "watch a descriptor"),
    Call("futex", 202, "the barrier of the rings, the interpreter's lock"),
    Call("clock_gettime", 228, "time, where the vDSO does not serve"),
    Call("pread64", 17, "guest memory that is not mapped; byte counts of this process"),
    Call("pwrite64", 18, "guest memory that is not mapped"),
    Call("pwritev2", 328, "a ringbuf's bytes"),
    Call("preadv2", 327, "its counterpart"),
    Call("preadv", 295, "the same, where Python was built without pwritev2"),
    Call("pwritev", 296, "the same"),
    Call("setsockopt", 54, "take a handled message off the VMM's socket, time out on the channel",
         (_SOL_SOCKET, OneOf(2, "option", {"SO_PEEK_OFF": 42, "SO_SNDTIMEO": 21, "SO_RCVTIMEO": 20}))),
    # Descriptors.
    Call("sendmsg", 46, "hand descriptors to the keeper; an address in it is ignored by the channel",
         (Own(0, "on the channel only", "channel_fd"),)),
    Call("close", 3, "close what is not needed", (Own(0, "not the channel, whose number must stay its own",
                                                      "channel_fd", equal=False),)),
    Call("accept4", 288, "take a client off a listening socket that the keeper handed over"),
    Call("shutdown", 48, "end a connection"),
    Call("epoll_create1", 291, "an event loop"),
    Call("dup", 32, "a second descriptor for the same file"),
    Call("fstat", 5, "size and identity of a guest memory file"),
    Call("fstatfs", 138, "whether guest memory has huge pages"),
    Call("lseek", 8, "a file's position"),
    Call("getsockname", 51, "a socket's family"),
    Call("getpeername", 52, "who is connected"),
    Call("getsockopt", 55, "a socket's type, its pending error",
         (_SOL_SOCKET, OneOf(2, "option", {"SO_TYPE": 3, "SO_ERROR": 4, "SO_ACCEPTCONN": 30, "SO_PROTOCOL": 38,
                                           "SO_DOMAIN": 39, "SO_PEEK_OFF": 42}))),
    Call("ioctl", 16, "how much waits, a terminal's size, blocking",
         (OneOf(1, "request", {"TCGETS": 0x5401, "TIOCOUTQ": 0x5411, "TIOCGWINSZ": 0x5413, "FIONREAD": 0x541B,
                               "FIONBIO": 0x5421, "FIONCLEX": 0x5450, "FIOCLEX": 0x5451}),)),
    Call("fcntl", 72, "flags, the lock of a ringbuf, the seals of guest memory",
         (OneOf(1, "command", {"F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_SETFL": 4, "F_GETLK": 5,
                               "F_SETLK": 6, "F_SETLKW": 7, "F_DUPFD_CLOEXEC": 1030, "F_GET_SEALS": 1034}),)),
    # Memory.
    Call("mmap", 9, "guest memory, the interpreter's memory", (Without(2, "PROT_EXEC", 4),)),
    Call("mprotect", 10, "the allocator", (Without(2, "PROT_EXEC", 4),)),
    Call("munmap", 11, "give memory back"),
    Call("mremap", 25, "the allocator"),
    Call("madvise", 28, "the allocator, memory of old output"),
    Call("brk", 12, "the allocator"),
    # Waiting, time, signals of its own, and its end.
    Call("poll", 7, "wait for a reply of the VMM"),
    Call("clock_nanosleep", 230, "wait for the keeper to read"),
    Call("clock_getres", 229, "time"),
    Call("gettimeofday", 96, "time"),
    Call("restart_syscall", 219, "the kernel's own, after a signal"),
    Call("rt_sigaction", 13, "signal handlers"),
    Call("rt_sigprocmask", 14, "signal handlers"),
    Call("rt_sigreturn", 15, "signal handlers"),
    Call("sigaltstack", 131, "signal handlers"),
    Call("setitimer", 38, "end a call that a VMM makes wait", (OneOf(0, "timer", {"ITIMER_REAL": 0}),)),
    Call("tgkill", 234, "abort()", (Own(0, "this process only", "pid"),)),
    Call("getpid", 39, "log records, abort()"),
    Call("gettid", 186, "abort()"),
    Call("getrandom", 318, "TLS, websocket"),
    Call("getrusage", 98, "CPU time"),
    Call("prlimit64", 302, "read the limit of descriptors",
         (OneOf(0, "process", {"itself": 0}), Null(2, "the new limit"))),
    Call("exit", 60, "its end"),
    Call("exit_group", 231, "its end"),
)  # fmt: skip


def worker_filter(process: Process) -> bytes:
    """Return the filter's program, an array of struct sock_filter, for one worker."""
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, AUDIT_ARCH_X86_64, 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
        _instruction(_AT_LEAST, X32_SYSCALL_BIT, 0, 1),
        _instruction(_RETURN, _KILL_PROCESS),
    ]
    for call in CALLS:
        decision = [part for condition in call.conditions for part in condition.code(process)]
        decision.append(_instruction(_RETURN, _ALLOW))
        program += [_instruction(_EQUAL, call.number, 0, len(decision)), *decision]
    program.append(_instruction(_RETURN, _REFUSE))
    return b"".join(program)


def table() -> list[str]:
    """Return `CALLS` as the rows of docs/security.md."""
    return [
        f"| {call.name} | {'; '.join(condition.text for condition in call.conditions)} | {call.reason} |"
        for call in CALLS
    ]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _load(argument: int, high: bool = False) -> bytes:
    return _instruction(_LOAD, _ARGUMENTS + 8 * argument + 4 * high)
