"""`virtserial guest`: the driver half, where the kernel's virtio_console is absent or unwanted."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError, PeerError, UsageError
from virtserial.guest.hints import did_you_mean

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

    from virtserial.driver.attachment import DeviceSession, Shape
    from virtserial.loop import EventLoop

USAGE = """usage: virtserial guest attach DEVICE... [--as cuse|pty|socket|auto]
                               [--run-dir DIR] [--mode MODE] [--owner USER]
                               [--group GROUP] [--wait] [--quiet]
                               [--ready-fd FD]
       virtserial guest bind ADDRESS...
       virtserial guest unbind ADDRESS...

attach drives virtio console devices from this process until SIGTERM or SIGINT.
A DEVICE is the path of a vfio-user socket, vhost-user:PATH for a vhost-user
socket, or the PCI address (0000:00:05.0) of a function bound to vfio-pci.
Their ports are shown

  --as cuse     as character devices /dev/vportDpN with links
                /dev/virtio-ports/NAME (Linux: CONFIG_CUSE, root)
  --as pty      as pseudo-terminals DIR/vportDpN, links DIR/virtio-ports/NAME
  --as socket   as unix sockets, under the same names
  --as auto     (default) as cuse where that is possible, else as pty

and consoles as terminals, /dev/hvcK or DIR/hvcK, for a getty.  A port's name is
in DIR/class/virtio-ports/vportDpN/name.  DIR is /run/virtserial, or
$XDG_RUNTIME_DIR/virtserial without root.  --wait waits for sockets that do not
exist or listen yet.

bind binds PCI functions to vfio-pci, unbind gives them back to the driver that
the system chooses.
"""
DEV = Path("/dev")
LOOK_AGAIN = 0.2
"""Seconds between two attempts to reach a server."""
_RIGHTS = {"user": "owner", "group": "group"}
"""By what an owner of nodes is: the option."""


def run(words: Sequence[str]) -> int:
    """Run `virtserial guest WORDS`; return the exit status."""
    commands = {"attach": attach, "bind": bind, "unbind": unbind}
    if not words or words[0] in ("-h", "--help", "-help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] not in commands:
        hint = did_you_mean(words[0], commands) or "`virtserial guest --help` lists them"
        print(f"virtserial guest: {words[0]!r} is not a command; {hint}", file=sys.stderr)
        return 2
    return commands[words[0]](words[1:])


def bind(words: Sequence[str]) -> int:
    """Bind PCI functions to vfio-pci."""
    from virtserial.driver.pci_binding import PciBinding

    for address in _addresses("bind", words):
        before = PciBinding(address).bind()
        print(f"{address}: vfio-pci has it" + (f", {before} had it" if before else ""))
    return 0


def unbind(words: Sequence[str]) -> int:
    """Give PCI functions back to the system's drivers."""
    from virtserial.driver.pci_binding import PciBinding

    for address in _addresses("unbind", words):
        now = PciBinding(address).unbind()
        print(f"{address}: {now or 'no driver'} has it")
    return 0


def _addresses(command: str, words: Sequence[str]) -> list[str]:
    from virtserial.driver.pci_binding import full_address

    if not words:
        raise UsageError(f"guest {command}: a PCI address is missing", "`lspci -D` lists them")
    addresses = [full_address(word) for word in words]
    for word, address in zip(words, addresses, strict=True):
        if address is None:
            raise UsageError(
                f"guest {command}: {word!r} is not a PCI address such as 0000:00:05.0", "`lspci -D` lists them"
            )
    return [address for address in addresses if address is not None]


def attach(words: Sequence[str]) -> int:
    """Drive devices until SIGTERM or SIGINT."""
    options = _attach_options(words)
    shape = _shape(options.shape)

    from virtserial.driver.attachment import DeviceSession, NodeMakers, stopped_by_signals
    from virtserial.driver.run_directory import RunDirectory
    from virtserial.loop import EventLoop

    cuse = None
    first = 0
    state: Path = options.run_dir
    directory = RunDirectory(DEV if shape == "cuse" else state, state)
    loop = EventLoop()
    if shape == "cuse":
        from virtserial.driver.cuse_ports import CuseDevices, NodeRights, first_free_device

        rights = NodeRights(options.mode, _id("user", options.owner), _id("group", options.group))
        cuse = CuseDevices(loop, directory, rights)
        first = first_free_device()
    makers = NodeMakers(shape, loop, directory, cuse)
    sessions: list[DeviceSession] = []
    say = (lambda _: None) if options.quiet else Lines(loop.now).say
    try:
        with stopped_by_signals(loop):
            for number, device in enumerate(options.devices, first):
                sessions.append(DeviceSession(loop, device, number, makers, say))
                if not _open(sessions[-1], device, loop, options.wait):
                    return 0
            say(f"ready: {len(sessions)} {'device' if len(sessions) == 1 else 'devices'}, ports as {shape}")
            if options.ready_fd is not None:
                os.close(options.ready_fd)
            loop.run()
    finally:
        for session in sessions:
            session.close()
        if cuse is not None:
            cuse.close()
        directory.close()
        loop.close()
    return 0


def _open(session: DeviceSession, device: str, loop: EventLoop, waits: bool) -> bool:
    """Open a device, perhaps when its server is there; False: a signal came first.

    Raises:
        ConfigError: it cannot be used.
    """
    while True:
        try:
            session.open()
            return True
        except (ConfigError, PeerError) as error:
            if not waits:
                text = str(error) if device in str(error) else f"{device}: {error}"
                hint = error.hint if isinstance(error, ConfigError) else ""
                raise ConfigError(f"guest attach: {text}", hint or _way_out(device)) from error
        woken: list[bool] = []

        def wake(woken: list[bool] = woken) -> None:
            woken.append(True)
            loop.stop()

        loop.call_later(LOOK_AGAIN, wake)
        loop.run()
        if not woken:
            return False


def _way_out(device: str) -> str:
    from virtserial.driver.pci_binding import full_address

    if full_address(device) is None:
        return "is its server running? --wait waits for it"
    return "" if os.path.exists(f"/sys/bus/pci/devices/{full_address(device)}") else "`lspci -D` lists PCI functions"


class Lines:
    """Prints lines, limited to MAX_LINES at once and LINES_PER_SECOND later: a device can cause any number.

    Args:
        now: a clock in seconds.
    """

    MAX_LINES = 1024
    LINES_PER_SECOND = 5.0

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._allowed = float(self.MAX_LINES)
        self._looked = now()
        self._left_out = 0

    def say(self, line: str) -> None:
        """Print a line, or count it as left out; errors of standard output are ignored."""
        now = self._now()
        self._allowed = min(self._allowed + (now - self._looked) * self.LINES_PER_SECOND, self.MAX_LINES)
        self._looked = now
        if self._allowed < 1:
            self._left_out += 1
            return
        self._allowed -= 1
        with contextlib.suppress(OSError):
            if self._left_out:
                print(f"({self._left_out} lines left out)", flush=True)
                self._left_out = 0
            print(line, flush=True)


def _attach_options(words: Sequence[str]) -> Namespace:
    from virtserial.daemon.keeper.run_directory import run_directory
    from virtserial.guest.words import Parser

    parser = Parser("virtserial guest attach", description="Drive virtio console devices from this process.")
    parser.add_argument(
        "devices", nargs="+", metavar="DEVICE",
        help="the path of a vfio-user socket, vhost-user:PATH, or the PCI address of a function bound to vfio-pci",
    )  # fmt: skip
    parser.add_argument(
        "--as", dest="shape", choices=("cuse", "pty", "socket", "auto"), default="auto",
        help="what ports look like; `virtserial guest --help` tells more (default: cuse where possible, else pty)",
    )  # fmt: skip
    parser.add_argument("--run-dir", type=Path, default=Path(run_directory()), metavar="DIR", help="of the nodes")
    parser.add_argument("--mode", type=_mode, default=0o600, metavar="MODE", help="of the nodes, octal (default: 600)")
    parser.add_argument("--owner", metavar="USER", help="of the nodes")
    parser.add_argument("--group", metavar="GROUP", help="of the nodes")
    parser.add_argument("--wait", action="store_true", help="wait for sockets that do not exist or listen yet")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but what failed")
    parser.add_argument("--ready-fd", type=int, metavar="FD", help="closed when every device is in use")
    return parser.parse_args(words)


def _mode(text: str) -> int:
    from argparse import ArgumentTypeError

    if not text or not set(text) <= set("01234567") or int(text, 8) > 0o777:
        raise ArgumentTypeError(f"{text!r} is no mode: write octal digits, 0 to 777")
    return int(text, 8)


def _shape(wanted: str) -> Shape:
    if wanted in ("auto", "cuse"):
        from virtserial.driver.cuse_channel import cuse_available

        if cuse_available() and os.access(DEV, os.W_OK):
            return "cuse"
        if wanted == "cuse":
            raise ConfigError(
                "guest attach: --as cuse needs /dev/cuse and the right to make nodes in /dev",
                "`modprobe cuse` as root; --as pty needs neither",
            )
        return "pty"
    return "socket" if wanted == "socket" else "pty"


def _id(kind: str, name: str | None) -> int:
    """The number of a user or group; -1 for none."""
    if name is None:
        return -1
    if name.isdecimal():
        return int(name)
    import grp
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"guest attach: --{_RIGHTS[kind]} {name}: there is no such {kind}") from None
