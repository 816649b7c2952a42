"""`virtserial web`: consoles and ports in a browser (docs/web.md)."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import signal
import sys
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError
from virtserial.guest import programs
from virtserial.guest.words import Parser

if TYPE_CHECKING:
    from virtserial.web.fleet_source import FleetSource

PROGRAM = "virtserial web"
LISTEN = "127.0.0.1:8040"
RECORDING = 64 << 20


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    options = _options(words)
    if options.new_token:
        return _new_token()
    if importlib.util.find_spec("aiohttp") is None:
        raise ConfigError(
            f"{PROGRAM} needs the package aiohttp, which is not installed",
            "pipx inject virtserial aiohttp, or python3-aiohttp of your distribution",
        )
    return programs.run(PROGRAM, lambda: _serve(options))


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(
        PROGRAM,
        description="Serve a page with the virtual machines of this user, and terminals on their consoles and ports. "
        "Without --users it is for this user and root, on this machine (or through `ssh -L`).",
    )  # fmt: skip
    parser.add_argument(
        "--listen", default=LISTEN, metavar="ADDRESS:PORT", help=f"or unix:PATH, of a proxy (default: {LISTEN})"
    )
    parser.add_argument("--users", metavar="FILE", help="who may do what; then a token is needed to log in")
    parser.add_argument("--new-token", action="store_true", help="print a token, and the line for that file; then end")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate (PEM, with those that signed it)")
    parser.add_argument("--tls-key", metavar="FILE", help="its key")
    parser.add_argument(
        "--origin", action="append", default=[], metavar="URL", help="the console's address in browsers, https://NAME"
    )
    parser.add_argument("--user-header", default="", metavar="NAME", help="a header by which a proxy says who it is")
    parser.add_argument(
        "--proxy", action="append", default=[], metavar="WHO", help="that proxy: an address, or a user of this machine"
    )
    parser.add_argument("--recordings", default="", metavar="FOLDER", help="show and make recordings there")
    parser.add_argument(
        "--monitor", action="append", default=[], metavar="VM=SOCKET", help="plug ports into VM through its QMP socket"
    )
    parser.add_argument(
        "--fleet", action="store_true", help="show the fleet (docs/fleet.md) instead of this machine's"
    )
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if (options.tls_cert is None) != (options.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    for each in options.monitor:
        if not all(each.partition("=")):
            parser.error(f"--monitor {each}: it is VM=SOCKET")
    return options


def _fleet_source() -> FleetSource:
    from virtserial.fleet.broker import INSTALL, load_settings

    settings = load_settings()
    try:
        from virtserial.web.fleet_source import FleetSource
    except ImportError as error:
        raise ConfigError(f"--fleet needs nats-py ({error})", INSTALL) from error
    return FleetSource(settings, lambda line: print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True))


def _new_token() -> int:
    from virtserial.web.people import new_token

    token, digest = new_token()
    print(f"token for its owner: {token}")
    print(f'line for the file:   token = "{digest}"')
    return 0


def _serve(options: argparse.Namespace) -> int:
    # A browser's connection that is reset ends with an error, and not this server.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # Only this command needs them.
    from virtserial.web.access import Access, Policy
    from virtserial.web.application import Console
    from virtserial.web.local_source import LocalSource
    from virtserial.web.people import People
    from virtserial.web.recordings import Recordings
    from virtserial.web.server import check_exposure, parse_listen, serve, tls_context

    address = parse_listen(options.listen)
    people = None if options.users is None else People(options.users)
    policy = Policy(people, options.user_header, options.proxy, options.origin)
    check_exposure(address, policy, options.tls_cert is not None)
    tls = None if options.tls_cert is None else tls_context(options.tls_cert, options.tls_key)
    monitors = dict(each.split("=", 1) for each in options.monitor)
    recordings = Recordings(options.recordings, RECORDING)

    def ready(where: str) -> None:
        print(f"ready: {where}", flush=True)
        if options.ready_fd is not None:
            os.close(options.ready_fd)

    async def main() -> None:
        console = Console(_fleet_source() if options.fleet else LocalSource(monitors), Access(policy), recordings)
        await serve(console, address, tls, ready)

    asyncio.run(main())
    return 0
