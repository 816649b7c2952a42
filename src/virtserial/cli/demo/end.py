"""What both ends of the demonstration do alike: make files, report in lines of JSON, compute sha1sums."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from virtserial.cli.demo.plan import incoming, outgoing

if TYPE_CHECKING:
    from virtserial.cli.demo.plan import Plan

CHUNK = 1 << 20


def report(event: str, **fields: object) -> None:
    """Tell the conductor something: one line of JSON on standard output."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def make_files(plan: Plan, folder: str) -> None:
    """Fill a folder with one file of random bytes for each port."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for port in plan.ports:
        with open(outgoing(folder, port), "wb") as file:
            file.writelines(os.urandom(min(CHUNK, plan.size - start)) for start in range(0, plan.size, CHUNK))


def wait_for_go() -> None:
    """Say that everything is ready, and begin when the conductor says so.

    A conductor that has gone has said why, or was killed: end without a word.
    """
    report("ready")
    if not sys.stdin.readline():
        sys.exit(1)


def report_digests(plan: Plan, folder: str) -> None:
    """Read every file again, as it is on disk, and report its sha1."""
    for port in plan.ports:
        for direction, path in (("out", outgoing(folder, port)), ("in", incoming(folder, port))):
            with open(path, "rb") as file:
                sha1 = hashlib.file_digest(file, "sha1").hexdigest()
                report("digest", port=port.name, direction=direction, sha1=sha1, size=os.fstat(file.fileno()).st_size)
