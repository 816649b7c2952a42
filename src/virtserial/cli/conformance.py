"""`virtserial conformance`: the hostile cases and the device contract, on any virtio console that can be reached."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from virtserial.errors import UsageError
from virtserial.guest.hints import did_you_mean
from virtserial.guest.words import Parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from virtserial.conformance.check import Check, Closable

    B = TypeVar("B", bound=Closable)


def run(words: list[str]) -> int:
    """Run the checks; return 0 if the device passes, 1 if not.

    Raises:
        UsageError: the target is none.
        VirtserialError: the device cannot be reached.
    """
    parser = Parser(
        "virtserial conformance",
        description="Check a virtio console device: what it owes to a good driver, and what it does with a bad one.",
        epilog="The device's guest must be away: the checks take its place.  docs/conformance.md tells the rest.",
    )
    parser.add_argument(
        "target", metavar="TARGET",
        help="vfio-user:PATH, vhost-user:PATH, qemu: (QEMU's own device), 'qemu:QEMU OPTION...',"
        " or 'guest:COMMAND' for the driver of a Linux guest",
    )  # fmt: skip
    parser.add_argument("checks", nargs="*", default=[], metavar="CHECK", help="only these, by name, as k07 or c05")
    parser.add_argument(
        "--host", action="append", default=[], metavar="N=ADDRESS",
        help="where port N's host end listens: unix:PATH or tcp:HOST:PORT; for a guest, N is the port's name",
    )  # fmt: skip
    parser.add_argument("--packed", action="store_true", help="use packed rings")
    parser.add_argument(
        "--legacy", action="store_true", help="use the legacy interface, and check the contract alone: k01 to k12"
    )
    parser.add_argument("--tap", action="store_true", help="print TAP in place of the table")
    parser.add_argument("--junit", metavar="FILE", help="write JUnit's XML too")
    parser.add_argument(
        "--strict", action="store_true", help="fail also where the specification allows what a device does otherwise"
    )
    options = parser.parse_intermixed_args(words)

    if options.target.startswith("guest:"):
        return _check_guest(options)
    from virtserial.conformance.check import Bench
    from virtserial.conformance.contract import CONTRACT
    from virtserial.conformance.hostile import hostile_checks
    from virtserial.conformance.targets import parse_target

    addresses = {_number(port): address for port, address in map(_host, options.host)}
    target = parse_target(options.target, addresses, legacy=options.legacy)
    if options.legacy and options.packed:
        raise UsageError("--legacy and --packed exclude each other")
    # A legacy driver cannot choose a queue's size; the cases need 16 entries.
    checks = [*CONTRACT, *([] if options.legacy else hostile_checks(packed=options.packed))]
    chosen = _chosen(checks, options)
    return _report(chosen, Bench(target, packed=options.packed, legacy=options.legacy), options)


def _check_guest(options: argparse.Namespace) -> int:
    from virtserial.conformance.guest_target import GuestBench, driver_checks

    command = shlex.split(options.target.removeprefix("guest:"))
    if not command or len(options.host) != 1:
        raise UsageError(
            f"{options.target}: takes a command and one port",
            "as 'guest:ssh root@vm' --host org.example.agent=unix:/run/vm/agent",
        )
    chosen = _chosen(driver_checks(), options)
    return _report(chosen, GuestBench(command, *_host(options.host[0])), options)


def _chosen(checks: Sequence[Check[B]], options: argparse.Namespace) -> list[Check[B]]:
    if unknown := set(options.checks) - {check.name for check in checks}:
        hint = did_you_mean(min(unknown), [check.name for check in checks]) or "checks are named as k07 or c05"
        raise UsageError(f"{', '.join(sorted(unknown))}: no such check", hint)
    return [check for check in checks if not options.checks or check.name in options.checks]


def _report(chosen: Sequence[Check[B]], bench: B, options: argparse.Namespace) -> int:
    from virtserial.conformance.check import run_checks
    from virtserial.conformance.report import is_failure, summary, tap, write_junit, write_row

    results = []
    try:
        for result in run_checks(chosen, bench):
            results.append(result)
            if not options.tap:
                write_row(result)
    finally:
        bench.close()
    if options.junit:
        write_junit(Path(options.junit), options.target, results, strict=options.strict)
    sys.stdout.write(tap(results, strict=options.strict) if options.tap else f"\n{summary(results)}\n")
    return int(any(is_failure(result.verdict, strict=options.strict) for result in results))


def _host(text: str) -> tuple[str, str]:
    port, equals, address = text.partition("=")
    if not port or not equals:
        raise UsageError(f"--host {text}: write the port's number, = and its address, as 1=unix:/run/vm/port1")
    return port, address


def _number(port: str) -> int:
    if not port.isdigit():
        raise UsageError(f"--host {port}=...: {port!r} is not a port's number")
    return int(port)
