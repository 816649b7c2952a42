"""The programs send, receive, console and log for either end of a port: words, output, exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from typing import BinaryIO, Callable, Iterator

from .conversation import converse
from .errors import NoPartner, PortError, PortRemoved, TransferFailed
from .files import messages as wire
from .files.receiver import Receiver
from .files.report import Reporter
from .files.sender import Sender
from .files.source import count, walk
from .files.target import Target
from .link import Link
from .log import SPOOL, LogCollector, LogInput, LogSender
from .recording import OUTPUT, Recorder
from .stream import READ_SIZE, EpollStream
from .terminal import Console, parse_escape, serve_program, terminal_size
from .words import Parser, seconds, size

Opener = Callable[[argparse.Namespace], EpollStream]
Adder = Callable[[argparse.ArgumentParser], None]


def send(
    program: str, words: list[str], add_address: Adder, open_end: Opener, other: str = "the other end"
) -> int:
    """`send`: files and trees to `receive` at the other end, which is called `other`."""
    parser = _parser(program, "Send files, folders and symbolic links over a port to `receive` at its other end.")
    add_address(parser)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="what to send; FOLDER/ sends what is in it")
    _add_transfer_options(parser)
    options = parser.parse_args(words)
    reporter = Reporter("sent", other, options.quiet, _on_terminal(options))
    for path in options.paths:
        if not os.path.lexists(path):
            raise TransferFailed(f"{path}: there is no such file")
    names = [os.path.basename(path) for path in options.paths if os.path.basename(path) not in ("", ".", "..")]
    for name in names:
        if names.count(name) > 1:
            raise TransferFailed(f"{name}: more than one of the paths would arrive under this name")
    total = None if options.quiet else count(options.paths)
    reporter.total = total
    link = Link(Sender.purpose)
    sender = Sender(walk(options.paths, reporter.complain), link, reporter.complain, total)
    try:
        with _opened(open_end, options) as stream:
            converse(
                stream, link, sender, options.timeout, lambda: reporter.show(sender.progress),
                reporter.interval, reporter.session,
            )  # fmt: skip
    finally:
        sender.close()
    reporter.finish(sender.progress)
    return 1 if reporter.failures else 0


def receive(
    program: str, words: list[str], add_address: Adder, open_end: Opener, other: str = "the other end"
) -> int:
    """`receive`: files and trees into one folder and nowhere else."""
    parser = _parser(program, "Receive what `send` at the other end of a port sends, into one folder.")
    add_address(parser)
    parser.add_argument("folder", metavar="FOLDER", help="where to put it; made if it is not there")
    parser.add_argument(
        "--all-links", action="store_true", help="also make symbolic links that lead out of the folder"
    )
    parser.add_argument("--limit", type=size, metavar="SIZE", help="bytes of files in all, at most (k, M, G, T)")
    _add_transfer_options(parser)
    options = parser.parse_args(words)
    reporter = Reporter("received", other, options.quiet, _on_terminal(options))
    try:
        target = Target(options.folder, options.all_links)
    except OSError as error:
        raise TransferFailed(f"{options.folder}: {error.strerror}") from error
    link = Link(Receiver.purpose)
    receiver = Receiver(target, link, reporter.complain, options.limit)
    try:
        with _opened(open_end, options) as stream:
            converse(
                stream, link, receiver, options.timeout, lambda: reporter.show(receiver.progress, receiver.total),
                reporter.interval, reporter.session,
            )  # fmt: skip
    finally:
        receiver.close()
        target.close()
    reporter.finish(receiver.progress)
    return 1 if reporter.failures else 0


def log(program: str, words: list[str], add_address: Adder, open_end: Opener, collects: bool) -> int:
    """`log`: lines from one end to the other, kept while the other is away.

    Args:
        collects: this end's default part: the host collects, the guest sends.
    """
    parser = _parser(program, "Carry log lines over a port; the sending end keeps them while the other is away.")
    add_address(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--from", dest="source", metavar="FILE", help="send the lines of FILE (- is standard input)")
    part.add_argument("--to", dest="output", metavar="FILE", help="append what comes to FILE (- is standard output)")
    parser.add_argument("--follow", action="store_true", help="with --from FILE: go on when it grows")
    parser.add_argument("--spool", type=size, default=SPOOL, metavar="SIZE", help="bytes to keep meanwhile")
    parser.add_argument("--once", action="store_true", help="with --to: end when the sender has sent all it had")
    parser.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="give up after so long without the other end"
    )
    options = parser.parse_args(words)
    if options.output or (collects and not options.source):
        return _collect(options, open_end)
    return _send_log(options, open_end)


def _send_log(options: argparse.Namespace, open_end: Opener) -> int:
    source = options.source or "-"
    fd = 0 if source == "-" else _open(source, os.O_RDONLY | os.O_NOCTTY)
    link = Link(LogSender.purpose)
    with _opened(open_end, options) as stream:
        sender = LogSender(LogInput(fd, stream, options.follow), link, options.spool)
        converse(stream, link, sender, options.timeout, turn=1.0 if options.follow else None)
    if sender.dropped:
        print(f"{sender.dropped} lines were dropped: the spool was full", file=sys.stderr)
    return 1 if sender.dropped else 0


def _collect(options: argparse.Namespace, open_end: Opener) -> int:
    output: BinaryIO = sys.stdout.buffer
    if options.output not in (None, "-"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY
        output = os.fdopen(_open(options.output, flags), "wb")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    link = Link(LogCollector.purpose)
    with _opened(open_end, options) as stream:
        converse(stream, link, LogCollector(output, link, options.once, say), options.timeout)
    return 0


def console(program: str, words: list[str], add_address: Adder, open_end: Opener) -> int:
    """`console`: this terminal on a port."""
    parser = _parser(program, "Use a port from this terminal. The escape key and q leave, and ? tells what else.")
    add_address(parser)
    parser.add_argument("--escape", default="^]", metavar="KEY", help="the escape key (default: ^], that is Ctrl-])")
    parser.add_argument(
        "--exec", dest="command", nargs=argparse.REMAINDER, metavar="WORD",
        help="run a program at this end of the port, on a terminal of its own, for each connection",
    )  # fmt: skip
    parser.add_argument("--watch", action="store_true", help="only look: what is typed goes nowhere")
    add_recording(parser, "--record")
    options = parser.parse_args(words)
    try:
        escape = parse_escape(options.escape)
    except ValueError as error:
        parser.error(f"--escape {options.escape}: {error}")
    with _opened(open_end, options) as stream:
        if options.command is not None:
            serve_program(stream, options.command or [os.environ.get("SHELL", "/bin/sh")])
            return 0
        recorder = None
        if options.record:
            screen = terminal_size(0) if os.isatty(0) else (24, 80)
            recorder = Recorder(options.record, options.port, screen, options.limit, options.keep, _to_stderr)
        if os.isatty(0):
            print("[virtserial: Ctrl-] and q leave]" if escape == 0x1D else "[virtserial: console]", flush=True)
        try:
            Console(stream, 0, 1, escape, recorder, options.watch).run()
        finally:
            if recorder is not None:
                recorder.close()
    return 0


def record(program: str, words: list[str], add_address: Adder, open_end: Opener) -> int:
    """`record`: what comes out of a port, with the times, into a file."""
    parser = _parser(program, "Record what comes out of a port, until Ctrl-C or until the port is gone.")
    add_address(parser)
    add_recording(parser, "file")
    parser.add_argument("--console", action="store_true", help="as text, for terminals: asciicast v2")
    options = parser.parse_args(words)
    screen = (24, 80) if options.console else None
    recorder = Recorder(options.file, options.port, screen, options.limit, options.keep, _to_stderr)
    present = None
    try:
        with open_end(options) as stream:
            while not recorder.ended:
                data = stream.take(READ_SIZE) if stream.connected else b""
                if data:
                    recorder.record(OUTPUT, data)
                if (data != b"") != present:
                    present = data != b""
                    recorder.mark("connected" if present else "away")
                if not data:
                    stream.probe()
                    stream.wait(None)
    except PortRemoved:
        recorder.mark("removed")
        raise
    except KeyboardInterrupt:
        return 0
    finally:
        recorder.close()
    return 1


def add_recording(parser: argparse.ArgumentParser, where: str) -> None:
    """Add the file of a recording, and its limits."""
    parser.add_argument(where, metavar="FILE", help="the recording (docs/recording.md)")
    parser.add_argument("--limit", type=size, metavar="SIZE", help="of the file, at most (k, M, G, T)")
    parser.add_argument(
        "--keep", type=int, default=0, metavar="N", help="go on in a new file, and keep N full ones: FILE.1 to FILE.N"
    )


@contextlib.contextmanager
def _opened(open_end: Opener, options: argparse.Namespace) -> Iterator[EpollStream]:
    """Open a port, and name it where nobody comes to its other end."""
    with open_end(options) as stream:
        try:
            yield stream
        except NoPartner as error:
            raise NoPartner(f"{options.port}: {error}") from error


def _to_stderr(text: str) -> None:
    print(f"\r[virtserial: {text}]\r", file=sys.stderr, flush=True)


def run(program: str, command: Callable[[], int]) -> int:
    """Run a command; its exit status: 0 done, 1 not or not all of it, 130 for Ctrl-C."""
    # A closed pipe of our output must not look like a failure of the port.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        return command()
    except PortError as error:
        print(f"{program}: {wire.printable(str(error))}", file=sys.stderr)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"{program}: {text}", file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 1


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    return Parser(program, description=description)


def _add_transfer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but what failed")
    parser.add_argument("--progress", action="store_true", help="show progress though standard error is no terminal")
    parser.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="give up after so long without the other end"
    )


def _on_terminal(options: argparse.Namespace) -> bool:
    return bool(options.progress) or (sys.stderr.isatty() and not options.quiet)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
