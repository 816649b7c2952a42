"""The contract of a Linux guest's driver: what an application in the guest relies on (drivers/char/virtio_console.c).

The specification says how driver and device talk of a port (5.3.6); what a character device then does is Linux's.
A case takes a port whose host's end nobody has, and a Python interpreter in the guest, where `PORT_HELPERS` were run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from virtserial.conformance.check import Violation
from virtserial.rig.channel import GuestError

if TYPE_CHECKING:
    from collections.abc import Callable

PORT_HELPERS: Final = """
import fcntl, select, signal
NAMES = {select.POLLIN: 'IN', select.POLLOUT: 'OUT', select.POLLHUP: 'HUP', select.POLLERR: 'ERR'}

def open_port(name, flags=os.O_RDWR):
    path = '/dev/virtio-ports/' + name
    until(lambda: os.path.exists(path))
    return os.open(path, flags)

def events(fd):
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    ready = poll.poll(0)
    return {name for bit, name in NAMES.items() if ready and ready[0][1] & bit}

def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError('it did not happen')
        time.sleep(0.005)

def debug(name, field):
    port = os.path.basename(os.readlink('/dev/virtio-ports/' + name))
    with open('/sys/kernel/debug/virtio-ports/' + port) as file:
        for line in file:
            key, _, value = line.partition(':')
            if key == field:
                return value.strip()

def read_exactly(fd, count):
    data = b''
    while len(data) < count:
        piece = os.read(fd, count - len(data))
        if not piece:
            break
        data += piece
    return data

def fill(fd):
    os.set_blocking(fd, False)
    count = 0
    try:
        while True:
            count += os.write(fd, bytes([count // 4096 % 251]) * 4096)
    except BlockingIOError:
        return count
"""


class App(Protocol):
    """An application in the guest: an interpreter that keeps its variables; GuestError is what it raises."""

    def __call__(self, source: str, timeout: float = 60) -> object:
        """Run statements; the value of the last one comes back."""
        ...

    def begin(self, source: str) -> None:
        """Start a call; `finish` waits for it."""
        ...

    def finish(self, timeout: float = 60) -> object:
        """The value of what `begin` started."""
        ...


class End(Protocol):
    """A connection to the host's end of the port."""

    def send(self, data: bytes) -> None: ...
    def receive(self, count: int) -> bytes: ...
    def close(self) -> None: ...


class DriverPort(Protocol):
    """The port: its name in the guest, and its host's end."""

    name: str

    def connect(self) -> End:
        """Connect to the host's end."""
        ...


class DriverCase(NamedTuple):
    """
    Attributes:
        name: in words, with underscores.
        section: of the specification.
        act: raises Violation; GuestError counts as one.
    """

    name: str
    section: str
    act: Callable[[App, DriverPort], None]


def expect(seen: object, wanted: object, what: str) -> None:
    """
    Raises:
        Violation: it is another.
    """
    if seen != wanted:
        raise Violation(f"{what} gives {seen!r}, not {wanted!r}")


def refused(app: App, source: str, error: str) -> None:
    """
    Raises:
        Violation: the call succeeds, or fails otherwise.
    """
    try:
        value = app(source)
    except GuestError as failure:
        if error not in str(failure):
            raise Violation(f"{source} fails with {failure}, not with {error}") from failure
        return
    raise Violation(f"{source} gives {value!r}, not {error}")


def _waits(app: App, what: str) -> None:
    try:
        value = app.finish(timeout=0.5)
    except GuestError as failure:
        if "did not write" in str(failure):
            return
        raise
    raise Violation(f"{what} does not wait, it gives {value!r}")


def _open(app: App, port: DriverPort) -> End:
    """Open the port as `fd`, the host's end connected."""
    end = port.connect()
    app(f"fd = open_port({port.name!r}); until(lambda: 'HUP' not in events(fd))")
    return end


def second_open_says_busy(app: App, port: DriverPort) -> None:
    app(f"fd = open_port({port.name!r})")
    refused(app, f"open_port({port.name!r})", "EBUSY")


def port_opens_again_after_close(app: App, port: DriverPort) -> None:
    app(f"os.close(open_port({port.name!r}))")
    app(f"os.close(open_port({port.name!r}))")


def poll_tells_that_the_host_is_away(app: App, port: DriverPort) -> None:
    app(f"fd = open_port({port.name!r})")
    expect(app("events(fd)"), {"IN", "HUP"}, "poll() without a host")


def poll_tells_that_the_host_has_come_and_gone(app: App, port: DriverPort) -> None:
    app(f"fd = open_port({port.name!r})")
    for _ in range(3):
        end = port.connect()
        app("until(lambda: events(fd) == {'OUT'})")
        end.close()
        app("until(lambda: events(fd) == {'IN', 'HUP'})")


def read_is_at_end_of_file_while_the_host_is_away(app: App, port: DriverPort) -> None:
    app(f"fd = open_port({port.name!r})")
    expect(app("os.read(fd, 100)"), b"", "read() without a host")


def read_drains_what_is_queued_before_the_end_of_file(app: App, port: DriverPort) -> None:
    end = _open(app, port)
    end.send(b"last words")
    end.close()
    app("until(lambda: 'HUP' in events(fd))")
    expect(app("read_exactly(fd, 100)"), b"last words", "read() after the host has left")
    expect(app("os.read(fd, 100)"), b"", "the next read()")


def nonblocking_read_of_an_idle_port_says_again(app: App, port: DriverPort) -> None:
    _open(app, port)
    app("os.set_blocking(fd, False)")
    refused(app, "os.read(fd, 100)", "EAGAIN")


def nonblocking_write_says_again_while_the_host_is_away(app: App, port: DriverPort) -> None:
    app(f"fd = open_port({port.name!r}, os.O_RDWR | os.O_NONBLOCK)")
    refused(app, "os.write(fd, b'x')", "EAGAIN")


def blocking_write_waits_for_the_host(app: App, port: DriverPort) -> None:
    app(f"fd = open_port({port.name!r})")
    app.begin("os.write(fd, b'patience')")
    _waits(app, "write() without a host")
    end = port.connect()
    expect(app.finish(timeout=20), 8, "write()")
    expect(end.receive(8), b"patience", "the host's end")


def one_write_carries_at_most_32_kib(app: App, port: DriverPort) -> None:
    end = _open(app, port)
    expect(app("os.write(fd, bytes(100000))"), 32768, "write() of 100,000 bytes")
    expect(end.receive(32768), bytes(32768), "the host's end")


def blocking_read_ends_when_the_host_leaves(app: App, port: DriverPort) -> None:
    end = _open(app, port)
    app.begin("os.read(fd, 100)")
    _waits(app, "read()")
    end.close()
    expect(app.finish(timeout=20), b"", "read() when the host leaves")


def blocking_read_takes_what_comes(app: App, port: DriverPort) -> None:
    end = _open(app, port)
    app.begin("os.read(fd, 100)")
    end.send(b"a word")
    expect(app.finish(timeout=20), b"a word", "read()")


def a_signal_ends_a_blocking_read_and_loses_nothing(app: App, port: DriverPort) -> None:
    end = _open(app, port)
    app("""
class Woken(Exception): pass
def wake(*_): raise Woken
signal.signal(signal.SIGALRM, wake)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    os.read(fd, 100)
except Woken:
    woken = True
""")
    expect(app("woken"), True, "a signal during read()")
    end.send(b"still here")
    expect(app("read_exactly(fd, 10)"), b"still here", "the next read()")


def one_thread_reads_while_another_writes(app: App, port: DriverPort) -> None:
    end = _open(app, port)
    app("""
import threading
got = []
thread = threading.Thread(target=lambda: got.append(os.read(fd, 100)))
thread.start()
""")
    app("os.write(fd, b'written meanwhile')")
    expect(end.receive(17), b"written meanwhile", "write() beside a read()")
    end.send(b"read at last")
    app("thread.join(20)")
    expect(app("got"), [b"read at last"], "the read()")


def a_full_port_is_not_writable_until_the_host_reads(app: App, port: DriverPort) -> None:
    end = _open(app, port)
    count = app("""
os.set_blocking(fd, False)
count = 0
def is_full():
    global count
    try:
        while True:
            count += os.write(fd, bytes([count // 4096 % 251]) * 4096)
    except BlockingIOError:
        time.sleep(0.2)  # the device may still be moving what it has into the host's socket
        return not events(fd)
until(is_full)
count
""")
    size = int(str(count))
    sent = b"".join(bytes([number % 251]) * 4096 for number in range(size // 4096))
    if end.receive(size) != sent:
        raise Violation(f"the host got other bytes than the {size} that were written")
    app("until(lambda: 'OUT' in events(fd))")


def edge_triggered_epoll_tells_of_every_message(app: App, port: DriverPort) -> None:
    end = _open(app, port)
    app("""
epoll = select.epoll()
epoll.register(fd, select.EPOLLIN | select.EPOLLET)
os.set_blocking(fd, False)
def next_message():
    # Edges may also be about room to write: what counts is that the message wakes us.
    while True:
        assert epoll.poll(20), 'nothing woke us'
        try:
            return os.read(fd, 100)
        except BlockingIOError:
            pass
""")
    for number in range(5):
        app.begin("next_message()")
        end.send(f"message {number}".encode())
        expect(app.finish(), f"message {number}".encode(), "epoll and read()")


def host_that_reconnects_finds_the_port_open(app: App, port: DriverPort) -> None:
    end = _open(app, port)
    end.send(b"before")
    expect(app("read_exactly(fd, 6)"), b"before", "read()")
    end.close()
    app("until(lambda: 'HUP' in events(fd))")
    again = port.connect()
    app("until(lambda: 'HUP' not in events(fd)); os.write(fd, b'after')")
    expect(again.receive(5), b"after", "the host's end")
    again.send(b"and back")
    expect(app("read_exactly(fd, 8)"), b"and back", "read()")


_OPENED, _HOST, _BYTES = "5.3.6.2, PORT_OPEN of the driver", "5.3.6.2, PORT_OPEN of the device", "5.3.6"
DRIVER_CONTRACT: Final = tuple(
    DriverCase(act.__name__, section, act)
    for section, acts in (
        (_OPENED, (second_open_says_busy, port_opens_again_after_close)),
        (
            _HOST,
            (
                poll_tells_that_the_host_is_away,
                poll_tells_that_the_host_has_come_and_gone,
                read_is_at_end_of_file_while_the_host_is_away,
                read_drains_what_is_queued_before_the_end_of_file,
                nonblocking_write_says_again_while_the_host_is_away,
                blocking_write_waits_for_the_host,
                blocking_read_ends_when_the_host_leaves,
                host_that_reconnects_finds_the_port_open,
            ),
        ),
        (
            _BYTES,
            (
                nonblocking_read_of_an_idle_port_says_again,
                one_write_carries_at_most_32_kib,
                blocking_read_takes_what_comes,
                a_signal_ends_a_blocking_read_and_loses_nothing,
                one_thread_reads_while_another_writes,
                a_full_port_is_not_writable_until_the_host_reads,
                edge_triggered_epoll_tells_of_every_message,
            ),
        ),
    )
    for act in acts
)
