"""Starts the three processes of the demonstration, follows them, compares, and cleans up."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import virtserial
from virtserial.cli.demo.display import Display, Row
from virtserial.cli.demo.plan import Plan
from virtserial.errors import VirtserialError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
READY_SECONDS = 10.0
END_SECONDS = 10.0
DIGITS = 12
"""Hexadecimal digits of a sha1 in the table, which fits 80 columns."""
STILL_SECONDS = {"embedded": 30.0, "qemu": 180.0}
"""How long nothing may be heard of an end before the demonstration is given up."""
SLOW_DISK = 10e6
"""Bytes per second: files are made and read again in silence, which takes as much longer as they are large."""
END_MODULES = {"embedded": "virtserial.cli.demo.guest_end", "qemu": "virtserial.cli.demo.linux_guest"}


class DemoFailed(VirtserialError):
    """The demonstration did not show what it should."""


class End:
    """A child process that reports in lines of JSON."""

    def __init__(self, name: str, module: str, plan: Plan) -> None:
        self.name = name
        self.rates: dict[str, float] = {}
        self.digests: dict[tuple[str, str], str] = {}
        self.ready = self.moved = False
        self._pending = b""
        self.process = start_python([module, plan.to_json()], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def fileno(self) -> int:
        """Its standard output's descriptor."""
        return self._stream(self.process.stdout).fileno()

    @staticmethod
    def _stream(stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None
        return stream

    def go(self) -> None:
        """Tell it to go on."""
        stdin = self._stream(self.process.stdin)
        try:
            stdin.write(b"go\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise DemoFailed(f"the {self.name} end has died") from error

    def reports(self) -> Iterator[dict[str, Any]]:
        """Yield what it has reported since; call it when its output is readable.

        Raises:
            DemoFailed: it has ended without success.
        """
        data = os.read(self.fileno(), 65536)
        if not data:
            status = self.process.wait()
            if status or not self.moved:
                raise DemoFailed(f"the {self.name} end ended with status {status}")
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def start_python(
    arguments: list[str], *, stdin: int | None = None, stdout: int | None = None, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Run a module of this package, from where this one is."""
    source = str(Path(virtserial.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    command, environment = [sys.executable, "-m", *arguments], {**os.environ, "PYTHONPATH": path}
    # In a session of its own: Ctrl-C is for the conductor, which ends the others.
    return subprocess.Popen(
        command, env=environment, stdin=stdin, stdout=stdout, pass_fds=pass_fds, start_new_session=True
    )


def start_server(plan: Plan) -> subprocess.Popen[bytes]:
    """Start the device process and wait until it is ready.

    Raises:
        DemoFailed: it did not become ready.
    """
    read_fd, write_fd = os.pipe()
    try:
        server = start_python(
            ["virtserial", "serve", *plan.serve_options(), "--ready-fd", str(write_fd)],
            pass_fds=(write_fd,),
            stdout=subprocess.DEVNULL,
        )
    finally:
        os.close(write_fd)
    try:
        if not select.select([read_fd], [], [], READY_SECONDS)[0] or server.poll() is not None:
            server.kill()
            raise DemoFailed(f"the device process was not ready (status {server.wait()})")
    finally:
        os.close(read_fd)
    return server


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a child process, by force if it must be."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Demonstration:
    """One run.

    Args:
        guest: "embedded" or "qemu".
    """

    def __init__(self, plan: Plan, guest: str) -> None:
        self._plan = plan
        self._guest = guest
        self._silence = STILL_SECONDS[guest]
        rows = [Row(port.name, to_host) for port in plan.ports for to_host in (True, False)]
        self._display = Display(plan.size, rows, [console.name for console in plan.consoles])
        self._last_news = 0.0
        self._latencies: list[float] = []
        self._refused: list[str] = []

    def run(self) -> bool:
        """Run it; True if every file arrived as it was and every command was answered rightly.

        Raises:
            DemoFailed: it came to no end.
        """
        plan, say = self._plan, self._display.say
        started = time.monotonic()
        files = len(plan.ports) * 2
        written = files * plan.size
        ends: list[End] = []
        server = start_server(plan)
        try:
            say(f"device process {server.pid}: 2 controllers, {len(plan.ports)} named ports, "
                f"{len(plan.consoles)} consoles, ready in {(time.monotonic() - started) * 1e3:.0f} ms")  # fmt: skip
            host = End("host", "virtserial.cli.demo.host_end", plan)
            ends.append(host)
            guest = End("guest", END_MODULES[self._guest], plan)
            ends.append(guest)
            say(f"host process {host.process.pid}, guest process {guest.process.pid}: "
                f"{plan.size >> 20} MiB each way on each port")  # fmt: skip
            self._follow(ends, lambda: host.ready and guest.ready, written)
            self._display.begin()
            for end in ends:
                end.go()
            self._follow(ends, lambda: host.moved and guest.moved)
            # The guest's end keeps its consoles alive until the host's has finished with them.
            host.go()
            self._follow(ends, lambda: len(host.digests) == len(guest.digests) == files, 2 * written)
            guest.go()
            for end in ends:
                end.process.wait(END_SECONDS)
            self._display.update(last=True)
            return self._compare(host, guest)
        finally:
            # A second signal must not end this.
            for number in ENDINGS:
                signal.signal(number, signal.SIG_IGN)
            # The ends first: the server then sees its clients leave in good order.
            for process in (*(end.process for end in ends), server):
                stop(process)

    def _follow(self, ends: list[End], done: Callable[[], bool], on_disk: int = 0) -> None:
        """Take reports until it is done; `on_disk` bytes are written or read meanwhile, of which nobody reports."""
        self._last_news = time.monotonic()
        limit = self._silence + on_disk / SLOW_DISK
        while not done():
            readable, _, _ = select.select(ends, [], [], limit)
            if not readable or time.monotonic() - self._last_news > limit:
                raise DemoFailed(f"nothing has moved for {limit:.0f} s")
            for end in readable:
                for report in end.reports():
                    self._take(end, report)

    def _take(self, end: End, report: dict[str, Any]) -> None:
        event = report["event"]
        if event == "ready":
            end.ready = True
        elif event == "say":
            self._display.say(report["line"])
        elif event == "progress":
            for name, count in report["received"].items():
                if self._display.moved(Row(name, to_host=end.name == "host"), count):
                    self._last_news = time.monotonic()
        elif event == "moved":
            end.moved = True
            end.rates = {name: self._plan.size / 1e6 / max(s, 1e-6) for name, s in report["seconds"].items()}
        elif event == "digest":
            end.digests[report["port"], report["direction"]] = report["sha1"]
        elif event == "console":
            self._latencies.append(report["seconds"])
            self._display.console(report["console"], report["command"], report["answer"], report["seconds"])
            if not report["ok"]:
                self._refused.append(f"{report['console']}: {report['command']}: {report['answer']}")
        elif event == "failed":
            raise DemoFailed(f"the {end.name} end: {report['reason']}")

    def _compare(self, host: End, guest: End) -> bool:
        rows, equal = [], True
        for port in self._plan.ports:
            for sender, receiver, direction in ((guest, host, "guest → host"), (host, guest, "host → guest")):
                sent, received = sender.digests[port.name, "out"], receiver.digests[port.name, "in"]
                equal = equal and sent == received
                rate = f"{receiver.rates[port.name]:.0f}"
                verdict = "equal" if sent == received else "DIFFERENT"
                rows.append([port.name, direction, rate, sent[:DIGITS], received[:DIGITS], verdict])
        print()
        self._display.table(["port", "direction", "MB/s", "sha1 sent", "sha1 received", ""], rows)
        print()
        answered = len(self._latencies) - len(self._refused)
        median = statistics.median(self._latencies) * 1e3 if self._latencies else 0
        print(f"{answered} of {len(self._latencies)} commands on {len(self._plan.consoles)} consoles answered rightly "
              f"meanwhile, median {median:.0f} ms")  # fmt: skip
        for line in self._refused:
            print(f"wrong answer on {line}")
        return equal and not self._refused and bool(answered)


def conduct(size: int, guest: str) -> int:
    """Run the demonstration in a temporary folder.

    Args:
        size: bytes of each file.
        guest: "embedded" or "qemu".

    Returns:
        The exit status: 0 only if every file and every answer was right.
    """
    if guest == "qemu":
        # Now, because it may take minutes, in which nothing else moves.
        from virtserial.rig.image import guest_image
        from virtserial.rig.qemu import find_qemu

        find_qemu()
        guest_image()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="virtserial-demo-") as folder:
        plan = Plan.make(Path(folder), size, guest_folder="/tmp/demo" if guest == "qemu" else None)
        for number in ENDINGS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, signal.default_int_handler)
        try:
            right = Demonstration(plan, guest).run()
        except (DemoFailed, subprocess.TimeoutExpired) as error:
            print(f"virtserial demo: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # The terminal may be gone.
                print("virtserial demo: interrupted", file=sys.stderr)
            return 130
    print(f"{'all sha1sums are equal' if right else 'NOT all is as it should be'}; {time.monotonic() - started:.1f} s")
    return 0 if right else 1
