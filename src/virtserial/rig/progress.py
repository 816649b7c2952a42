"""Says what is fetched, how much and where to, before it is; a bar while it comes, on a terminal."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from virtserial.guest.files.report import amount

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BAR = 30
STATUS = re.compile(r"dlstatus:\d+:([0-9.]+):(.*)")
"""A line of apt's APT::Status-Fd: the percentage, and a text for people."""


def size_of(uris: str) -> int:
    """Return the bytes that `apt-get install --print-uris` lists: 'URI' FILE SIZE HASH in each line."""
    lines = (line.split() for line in uris.splitlines() if line.startswith("'"))
    return sum(int(words[2]) for words in lines if len(words) > 2 and words[2].isdecimal())


def announce(what: str, size: int, source: str, place: Path) -> None:
    """Say what is going to be fetched."""
    text = f"fetching {what} and what it needs, {amount(size)}\n  from {source}\n  into {place}"
    print(text, file=sys.stderr, flush=True)


def follow(status: Iterable[str]) -> None:
    """Draw apt's progress, if standard error is a terminal, until `status` ends."""
    draws = sys.stderr.isatty()
    for line in status:
        matched = STATUS.match(line)
        if matched is not None and draws:
            share = min(float(matched[1]) / 100, 1.0)
            text = f"[{'#' * int(share * BAR):-<{BAR}}] {share:4.0%}  {matched[2]}"
            sys.stderr.write("\r\x1b[K" + text[:79])
            sys.stderr.flush()
    if draws:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
