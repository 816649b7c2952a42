"""`virtserial fleet`: the hosts, VMs and ports that are reached over a broker (docs/fleet.md)."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import secrets
import signal
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from virtserial.cli.overview import CLEAR, text_of
from virtserial.errors import ConfigError, UsageError
from virtserial.fleet.broker import INSTALL, Settings, connect, load_settings, set_up
from virtserial.fleet.roles import ROLES, configuration
from virtserial.guest import programs
from virtserial.guest.hints import did_you_mean
from virtserial.guest.words import Parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable

    from virtserial.fleet.directory import Directory

PROGRAM = "virtserial fleet"
VM_HEADING = ("HOST/VM", "USER", "PORTS ", "OPEN ", "CLIENTS ", "PUBLISHED ")
PORT_HEADING = ("HOST/VM/PORT", "KIND", "GUEST", "CLIENTS ", "PUBLISHED")
OPERATION_TIME = 10.0
LEAST_INTERVAL = 0.5
"""Seconds between two pictures of --watch."""


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = Parser(PROGRAM, description="Hosts, their VMs and ports, over a NATS broker (docs/fleet.md).")
    parser.add_argument("--config", metavar="FILE", help="the fleet's file instead of $VIRTSERIAL_FLEET")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    setup = actions.add_parser("setup", help="make what a fleet keeps at the broker, or change it")
    setup.add_argument("--replicas", type=int, default=1, choices=(1, 3, 5), help="servers that keep each message")
    setup.add_argument("--kept", type=int, default=256, metavar="N", help="messages of output kept of each port")
    setup.add_argument("--size", type=int, default=1024, metavar="MIB", help="output kept of all ports")
    setup.add_argument("--memory", action="store_true", help="keep it in memory, not in files")

    join = actions.add_parser("join", help="bring this host's VMs into the fleet, until SIGTERM")
    join.add_argument("--host", metavar="NAME", help="the name of this host (default: its own)")
    join.add_argument("--vm", action="append", metavar="PATTERN", help="only VMs of such names")
    join.add_argument(
        "--publish", action="append", default=[], metavar="PATTERN",
        help="VM/PORT whose output goes to the broker all the time, for late readers",
    )  # fmt: skip

    join.add_argument(
        "--monitor", action="append", default=[], metavar="VM=SOCKET",
        help="a VM's QMP socket, through which ports are plugged and unplugged",
    )  # fmt: skip

    ls = actions.add_parser("ls", help="list the fleet's VMs, or the ports of some")
    ls.add_argument("names", nargs="*", metavar="HOST[/VM]", help="list the ports of these")
    ls.add_argument("--json", action="store_true", help="for programs: one JSON value, with --watch one a line")
    ls.add_argument("--watch", action="store_true", help="show it again when something changes, until Ctrl-C")

    restart = actions.add_parser("restart", help="upgrade the device process of a VM to the installed code")
    restart.add_argument("vm", metavar="HOST/VM")
    restart.add_argument("--worker", action="store_true", help="only the process that moves the bytes")

    plug = actions.add_parser("plug", help="plug a port into a VM")
    plug.add_argument("vm", metavar="HOST/VM")
    plug.add_argument("port", metavar="PORT", help="its name")
    plug.add_argument("--console", action="store_true", help="a console instead of a port")
    plug.add_argument("--clients", type=int, default=1, metavar="N", help="how many may connect at once (default: 1)")
    unplug = actions.add_parser("unplug", help="unplug a port of a VM")
    unplug.add_argument("port", metavar="HOST/VM/PORT")

    roles = actions.add_parser("role", help="print a user's permissions, for nats-server's configuration")
    roles.add_argument("role", choices=ROLES)
    roles.add_argument("place", nargs="?", default="", metavar="HOST[/VM]", help="an agent's host; where others may")
    roles.add_argument("--inbox", default="_INBOX", metavar="PREFIX", help="as in the user's fleet.toml")

    options = parser.parse_args(words)
    if options.action == "role":
        print(configuration(options.role, options.place, options.inbox), end="")
        return 0
    settings = load_settings(options.config)
    if importlib.util.find_spec("nats") is None:
        raise ConfigError(f"{PROGRAM} needs the package nats-py, which is not installed", INSTALL)
    action = {
        "setup": _setup, "join": _join, "ls": _ls, "restart": _restart, "plug": _plug, "unplug": _unplug,
    }[options.action]  # fmt: skip
    return programs.run(PROGRAM, lambda: asyncio.run(_status(action(options, settings))))


async def _status(action: Awaitable[None]) -> int:
    # A connection that the broker resets ends with an error, and not the program; nor does `| head`.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        await action
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _say(line: str) -> None:
    print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)


async def _setup(options: argparse.Namespace, settings: Settings) -> None:
    async with await connect(settings, "virtserial fleet setup", _say) as client:
        await set_up(client, options.replicas, options.kept, options.size << 20, options.memory)
    print("the fleet is set up")


async def _join(options: argparse.Namespace, settings: Settings) -> None:
    from virtserial.fleet.agent import Agent, host_name

    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    log = logging.getLogger("virtserial.fleet")
    host = options.host or host_name()
    monitors = dict(each.partition("=")[::2] for each in options.monitor)
    if not all(monitors.values()):
        raise UsageError("--monitor takes VM=SOCKET", "`virtserial fleet join --help` lists the options")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    joining = asyncio.ensure_future(connect(settings, f"virtserial fleet join {host}", log.warning, None))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((joining, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not joining.done():
        joining.cancel()
        return
    client = joining.result()
    try:
        await Agent(client, host, options.vm or ["*"], options.publish, monitors).run(stop)
    finally:
        with contextlib.suppress(OSError):
            await client.close()


async def _ls(options: argparse.Namespace, settings: Settings) -> None:
    from virtserial.fleet.directory import Directory

    async with await connect(settings, "virtserial fleet ls", _say) as client:
        host = options.names[0].partition("/")[0] if len(options.names) == 1 else None
        directory = Directory(client, host)
        try:
            await directory.load()
            while True:
                _show(directory, options)
                if not options.watch:
                    return
                until = time.monotonic() + LEAST_INTERVAL
                await directory.change(5.0)
                while (left := until - time.monotonic()) > 0:
                    await directory.change(left)
        finally:
            await directory.stop()


def _show(directory: Directory, options: argparse.Namespace) -> None:
    names: list[str] = options.names
    there = {f"{host}/{vm}": record for (host, vm), record in directory.vms().items()}
    known = [*directory.hosts(), *there]
    for name in names:
        if name not in known and not options.watch:
            hint = did_you_mean(name, known) or "`virtserial fleet ls` lists all"
            raise ConfigError(f"no '{name}' is in the fleet", hint)
    vms = {
        name: record
        for name, record in there.items()
        if not names or name in names or name.partition("/")[0] in names
    }
    if options.json:
        hosts = {name: asdict(record) for name, record in directory.hosts().items()}
        print(json.dumps({"hosts": hosts, "vms": {name: asdict(vm) for name, vm in vms.items()}}), flush=True)
        return
    rows: list[tuple[str, ...]]
    if names:
        rows = [PORT_HEADING]
        rows += [
            (f"{name}/{port.name}", port.console or "port", "open" if port.guest_open else "closed",
             "?" if port.clients is None else str(port.clients), port.error or ("yes" if port.published else "no"))
            for name, vm in vms.items() for port in vm.ports
        ]  # fmt: skip
    else:
        rows = [VM_HEADING]
        rows += [
            (name, vm.user, str(len(vm.ports)), str(sum(port.guest_open for port in vm.ports)),
             str(sum(port.clients or 0 for port in vm.ports)), str(sum(port.published for port in vm.ports)))
            for name, vm in vms.items()
        ]  # fmt: skip
    clear = CLEAR if options.watch and sys.stdout.isatty() else ""
    sys.stdout.write(clear + (text_of(rows) if len(rows) > 1 else "no VM is in the fleet\n"))
    for name, record in directory.hosts().items():
        if record.lost or record.refused:
            refused = ", ".join(f"{count} {what}" for what, count in record.refused.items())
            sys.stdout.write(f"host {name}: {record.lost} bytes lost{'; refused: ' if refused else ''}{refused}\n")
    sys.stdout.flush()


async def _restart(options: argparse.Namespace, settings: Settings) -> None:
    await _operate(settings, options.vm, "restart", {"keeper": not options.worker})
    print(f"the device of '{options.vm}' restarts")


async def _plug(options: argparse.Namespace, settings: Settings) -> None:
    request = {"port": options.port, "console": options.console, "clients": options.clients}
    await _operate(settings, options.vm, "plug", request)
    print(f"'{options.vm}/{options.port}' is plugged in")


async def _unplug(options: argparse.Namespace, settings: Settings) -> None:
    vm, _, port = options.port.rpartition("/")
    await _operate(settings, vm, "unplug", {"port": port})
    print(f"'{options.port}' is being unplugged")


async def _operate(settings: Settings, name: str, verb: str, request: dict[str, object]) -> None:
    from virtserial.fleet.operations import check
    from virtserial.fleet.protocol import SESSION, token
    from virtserial.fleet.session import ask

    host, _, vm = name.partition("/")
    if not host or not vm:
        raise UsageError(f"{name}: say HOST/VM", "`virtserial fleet ls` lists them")
    async with await connect(settings, f"virtserial fleet {verb}", _say) as client:
        subject = f"vs.{token(host)}.{token(vm)}.{verb}"
        check(await ask(client, subject, request, OPERATION_TIME, {SESSION: secrets.token_hex(8)}))
