"""`mux=on`: up to four ports on one host end (QEMU's chardev/char-mux.c).

| from | to | held back |
|---|---|---|
| each port | the host end | while the host end does not take it: then all ports wait |
| the host end | the port in focus | when that has INPUT_SIZE bytes that its guest has not read |
| Ctrl-a and a key | the multiplexer | after COMMANDS in BUDGET_SECONDS: then the rest of the input waits, in order |

What was read and not yet handled is in `_typed`.  One turn handles at most INPUT_SIZE bytes in PIECES pieces, because a
client can send two-byte commands without a pause, and each can cost a write or a message to the keeper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.channel.connections import MAX_FRONTS
from virtserial.errors import BackendError, StateError
from virtserial.host_end.base import HostEnd
from virtserial.host_end.buffers import front_of
from virtserial.host_end.linger import Linger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.loop import EventLoop, Timer

ESCAPE = b"\x01"
INPUT_SIZE = 4096
"""Bytes read ahead for the port in focus, to find a Ctrl-a although its guest does not read (QEMU: 32)."""
PIECES = 256
"""Pieces between two Ctrl-a handled in one turn."""
COMMANDS, BUDGET_SECONDS = 8, 0.01
"""Commands executed in so many seconds."""
STAMPED_SIZE = 4096
"""Bytes of a port's output that get timestamps at once."""

HELP = (
    ("h", "print this help"),
    ("x", "exit emulator"),
    ("s", "save disk data back to file (if -snapshot)"),
    ("t", "toggle console timestamps"),
    ("b", "send break (magic sysrq)"),
    ("c", "switch between console and monitor"),
    ("C-a", "sends C-a"),
)


class Multiplexer:
    """
    Args:
        end: the host end that is shared.
        quit: what Ctrl-a x does; None: nothing.
        program: what that ends.
    """

    def __init__(
        self,
        loop: EventLoop,
        end: HostEnd,
        quit: Callable[[], None] | None = None,  # noqa: A002
        program: str = "virtserial",
    ) -> None:
        self.end = end
        self._program = program
        self._loop = loop
        self._quit = quit
        self._fronts: list[MuxHostEnd | None] = [None] * MAX_FRONTS
        self._focus = -1
        self._typed = bytearray()
        self._escaped = False
        self._commands = 0
        self._budget_renewed = 0.0
        self._pause: Timer | None = None
        self._output = bytearray()
        self._timestamps = False
        self._timestamps_start = 0.0
        self._at_line_start = False
        end.listener = self
        # Always: a Ctrl-a can come at any time.
        end.wants_input = True

    def add_front(self) -> MuxHostEnd:
        """Return a host end for one more port, which gets the focus.

        Raises:
            StateError: it has MAX_FRONTS ports.
        """
        if None not in self._fronts:
            raise StateError(f"more than {MAX_FRONTS} ports on one host end")
        index = self._fronts.index(None)
        front = MuxHostEnd(self)
        self._fronts[index] = front
        self._set_focus(index)
        return front

    def start(self) -> None:
        """Start the host end; call it once the ports are attached to their fronts."""
        self.end.start()

    @property
    def fronts(self) -> list[MuxHostEnd]:
        """The host ends of its ports."""
        return [front for front in self._fronts if front is not None]

    def front_closed(self, front: MuxHostEnd) -> None:
        """A port is gone; with the last one the host end is closed."""
        index = self._fronts.index(front)
        self._fronts[index] = None
        if not self.fronts:
            if self._pause is not None:
                self._pause.cancel()
            self.end.close()
        elif self._focus == index:
            self._switch()

    # Input

    def _set_focus(self, index: int) -> None:
        before, self._focus = self._focused(), index
        after = self._focused()
        if before is not None and before is not after:
            before.focus_changed(False)
        if after is not None and before is not after:
            after.focus_changed(True)
        self._loop.add_turn(self.pump)

    def _switch(self) -> None:
        """Give the focus to the next port."""
        order = [(self._focus + step) % MAX_FRONTS for step in range(1, MAX_FRONTS + 1)]
        self._set_focus(next(index for index in order if self._fronts[index] is not None))

    def pump(self) -> None:
        """Read and handle what was typed, up to a budget; the rest has another turn."""
        self._handle_typed()
        if not self._typed and self._read_typed():
            self._handle_typed()
            self._loop.add_turn(self.pump)
        for front in self.fronts:
            if front.input and front.wants_input:
                front.announce_input()

    def pump_soon(self) -> None:
        """`pump` in a turn of its own: readv may not call its listener."""
        self._loop.add_turn(self.pump)

    def _read_typed(self) -> bool:
        """Read for the port in focus, if it has room; whether there was something."""
        if not self.end.connected or self._room() <= 0:
            return False
        buffer = bytearray(self._room())
        try:
            count = self.end.readv([memoryview(buffer)])
        except BackendError:
            self._loop.add_turn(self.host_closed)
            return False
        self._typed += buffer[:count]
        return count > 0

    def _focused(self) -> MuxHostEnd | None:
        return self._fronts[self._focus] if self._focus >= 0 else None

    def _room(self) -> int:
        front = self._focused()
        return INPUT_SIZE - len(front.input) if front is not None else 0

    def _handle_typed(self) -> None:
        """Give what was typed to the port in focus while that has room, and execute commands, up to a budget."""
        typed = self._typed
        for _ in range(PIECES):
            if not typed:
                return
            if not self._escaped:
                front, room = self._focused(), self._room()
                escape = typed.find(ESCAPE, 0, max(room, 0) + 1)
                text = typed[:escape] if escape >= 0 else typed[: max(room, 0)]
                if front is None or (not text and escape < 0):
                    return
                front.input += text
                del typed[: len(text)]
                if escape >= 0:
                    del typed[0]
                    self._escaped = True
            elif typed[0] == ESCAPE[0]:
                if (front := self._focused()) is None or self._room() <= 0:
                    return
                front.input += ESCAPE
                del typed[0]
                self._escaped = False
            else:
                if not self._may_execute():
                    return
                self._escaped = False
                self._command(chr(typed.pop(0)))
        self._loop.add_turn(self.pump)

    def _may_execute(self) -> bool:
        """Whether the budget has room for a command; if not, `pump` is called when it has."""
        now = self._loop.now()
        if now >= self._budget_renewed + BUDGET_SECONDS:
            self._budget_renewed, self._commands = now, 0
        self._commands += 1
        if self._commands <= COMMANDS:
            return True
        if self._pause is None:
            self._pause = self._loop.call_at(self._budget_renewed + BUDGET_SECONDS, self._end_pause)
        return False

    def _end_pause(self) -> None:
        self._pause = None
        self.pump()

    def _command(self, key: str) -> None:
        if key in "h?":
            shown = [f"C-a {name:<4} {what}" for name, what in HELP if name != "x" or self._quit is not None]
            self._print("\n\r" + "".join(f"{line}\n\r" for line in shown))
        elif key == "c":
            self._switch()
        elif key == "t":
            self._timestamps = not self._timestamps
            self._timestamps_start = self._loop.now()
            self._at_line_start = False
        elif key == "x" and self._quit is not None:
            self._print(f"{self._program}: Terminated\n\r")
            self._quit()
        # b, s: virtio-serial has no break, and this process no disks.

    # Output

    def _print(self, text: str) -> None:
        """Write a text, or drop it while the host end has not taken the one before."""
        if self.flush():
            self._output += text.encode()
            self.flush()

    def flush(self) -> bool:
        """Write what was kept; return whether all is taken."""
        while self._output and self.end.connected:
            with memoryview(bytes(self._output)) as waiting:
                try:
                    taken = self.end.writev([waiting])
                except BackendError:
                    self._loop.add_turn(self.host_closed)
                    break
            if not taken:
                return False
            del self._output[:taken]
        self._output.clear()
        return True

    def writev(self, buffers: Sequence[memoryview]) -> int:
        """Output of any port."""
        if not self.flush():
            return 0
        if not self._timestamps:
            return self.end.writev(buffers)
        front = front_of(buffers, STAMPED_SIZE)
        for byte in b"".join(front):
            if self._at_line_start:
                self._output += self._timestamp()
                self._at_line_start = False
            self._output.append(byte)
            self._at_line_start = byte == ord("\n")
        self.flush()
        return sum(buffer.nbytes for buffer in front)

    def _timestamp(self) -> bytes:
        milliseconds = int((self._loop.now() - self._timestamps_start) * 1000)
        seconds = milliseconds // 1000
        return b"[%02d:%02d:%02d.%03d] " % (
            seconds // 3600,
            seconds // 60 % 60,
            seconds % 60,
            milliseconds % 1000,
        )

    # HostListener

    def host_opened(self) -> None:
        for front in self.fronts:
            front.end_opened()

    def host_closed(self) -> None:
        self._output.clear()
        self._typed.clear()
        self._escaped = False
        for front in self.fronts:
            front.end_closed()

    def close_soon(self, front: MuxHostEnd) -> None:
        """The last of the input has been read."""
        self._loop.add_turn(front.end_closed)

    def linger(self) -> Linger:
        """Return what limits how long a front keeps the last of the input."""
        return Linger(self._loop)

    def failed(self) -> None:
        """The host end failed in a call of one port: report it to the others."""
        self._loop.add_turn(self.host_closed)

    def host_readable(self) -> None:
        self.pump()

    def host_writable(self) -> None:
        if self.flush():
            for front in self.fronts:
                front.listener.host_writable()


class MuxHostEnd(HostEnd):
    """One port's share of a host end."""

    def __init__(self, mux: Multiplexer) -> None:
        super().__init__(mux.end.name)
        self._mux = mux
        self._closed = False
        self._closing = False
        self._linger: Linger | None = None
        self.input = bytearray()
        self.focus_changed: Callable[[bool], None] = lambda _: None
        """Called when the focus comes (True) or goes."""

    def start(self) -> None:
        if self._mux.end.connected and not self.connected:
            self.end_opened()

    def _wants_input_changed(self) -> None:
        if self._closing and not self._wants_input:
            self._mux.close_soon(self)

    def end_opened(self) -> None:
        if self._closing:
            self.end_closed(at_once=True)
        self.connected = True
        self.listener.host_opened()

    def end_closed(self, *, at_once: bool = False) -> None:
        """The shared end is closed; if the guest reads, it gets the last input first."""
        if self.input and self.wants_input and not at_once:
            self._closing = True
            if self._mux.end.ended and self._linger is None:
                self._linger = self._mux.linger()
                self._linger.begin(lambda: len(self.input), lambda: self.end_closed(at_once=True))
            return
        if self._linger is not None:
            self._linger.end()
        was_connected, self.connected = self.connected, False
        self._closing = False
        self.ended = ended = self._mux.end.ended
        self.input_discarded += len(self.input)
        self.input.clear()
        self.readable = False
        if was_connected or ended:
            self.listener.host_closed()

    def announce_input(self) -> None:
        self.readable = True
        self.listener.host_readable()

    def writev(self, buffers: Sequence[memoryview]) -> int:
        if self._closing:
            size = sum(buffer.nbytes for buffer in buffers)
            self.output_discarded += size
            return size
        try:
            return self._mux.writev(buffers)
        except BackendError:
            self.ended = True
            self.connected = False
            self._mux.failed()
            raise

    def wait_writable(self) -> bool:
        return self._mux.end.wait_writable()

    def readv(self, buffers: Sequence[memoryview]) -> int:
        given = 0
        for buffer in buffers:
            piece = self.input[given : given + buffer.nbytes]
            buffer[: len(piece)] = piece
            given += len(piece)
        del self.input[:given]
        self.readable = bool(self.input)
        if not self.input:
            if self._closing:
                self._mux.close_soon(self)
            elif given:
                self._mux.pump_soon()
        return given

    def wait_readable(self) -> bool:
        return not self.input

    def log_unconnected(self, buffers: Sequence[memoryview]) -> None:
        self._mux.end.log_unconnected(buffers)

    def guest_opened(self) -> None:
        self._mux.end.guest_opened()

    def guest_ready(self) -> None:
        self._mux.end.guest_ready()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.connected = False
            if self._linger is not None:
                self._linger.close()
            self._mux.front_closed(self)
