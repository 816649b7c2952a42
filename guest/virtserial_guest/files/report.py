"""A transfer's output on standard error: errors, sessions, a bar of progress on a terminal, a summary."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Callable

from .messages import printable

if TYPE_CHECKING:
    from .sender import Progress
    from .source import Total

COMPLAINTS = 100
"""The most lines about single files: a hostile sender could cause any number."""
INTERVAL = 0.2
"""Seconds between two looks at the progress."""
PATIENCE = 3.0
"""Seconds of waiting after which that is said where no bar is."""
BAR = 20
"""Characters of the bar."""


class Reporter:
    """Says what becomes of a transfer.

    Attributes:
        total: what is to be sent, if that is known.
        failures: files that could not be sent or received.
    """

    def __init__(
        self,
        verb: str,
        other: str,
        quiet: bool,
        show_progress: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A report of what is still to begin.

        Args:
            verb: what becomes of files: "sent", "received".
            other: what the other end is called.
            quiet: say nothing but failures.
            show_progress: draw the bar.
            clock: seconds.
        """
        self._verb, self._other = verb, other
        self._quiet = quiet
        self._shows = show_progress and not quiet
        self._clock = clock
        self._begun = self._shown_at = self._waits_since = clock()
        self._joined: float | None = None
        self._first: tuple[float, int] | None = None
        self._most = 0
        self._in_session = self._had_session = self._said_wait = False
        self._has_line = False
        self.total: Total | None = None
        self.failures = 0

    @property
    def interval(self) -> float | None:
        """Seconds between two calls of show(); None if it has nothing to say."""
        return None if self._quiet else INTERVAL if self._shows else PATIENCE

    def complain(self, text: str) -> None:
        """A file that could not be sent or received."""
        self.failures += 1
        if self.failures <= COMPLAINTS:
            self._say(text)
        elif self.failures == COMPLAINTS + 1:
            self._say("more files failed; they are counted only")

    def session(self, begun: bool) -> None:
        """A session started or ended."""
        if begun and self._had_session and not self._quiet:
            self._say("connected again, going on")
        if begun and self._joined is None:
            self._joined = self._clock()
        self._in_session = begun
        self._had_session = True
        self._waits_since, self._said_wait = self._clock(), False
        self._first, self._most = None, 0

    def show(self, progress: Progress, total: Total | None = None) -> None:
        """Draw the line of progress, if it is time; `total` is what the sender has told.

        Where no line is drawn, say once that the other end is awaited.
        """
        now = self._clock()
        if not self._shows:
            if not (self._quiet or self._in_session or self._said_wait) and now - self._waits_since >= PATIENCE:
                self._say(f"waiting for {self._other}")
                self._said_wait = True
            return
        if now - self._shown_at < INTERVAL:
            return
        self._shown_at = now
        self.total = total or self.total
        line = self.line(progress, now) if self._in_session else f"waiting for {self._other}"
        width = shutil.get_terminal_size((100, 24)).columns
        sys.stderr.write("\r\x1b[K" + line[: max(width - 1, 20)])
        sys.stderr.flush()
        self._has_line = True

    def line(self, progress: Progress, now: float) -> str:
        """The line of progress."""
        # A file that is sent and not yet confirmed counts for nothing; who watches has seen it already.
        size = self._most = max(self._most, progress.size)
        if self._first is None and size:
            # What was there before (resumed) has cost no time.
            self._first = now, size
        since, before = self._first or (now, size)
        rate = (size - before) / (now - since) if now > since else 0.0
        parts = [amount(size)]
        total = self.total
        if total is not None and total.size:
            share = min(size / total.size, 1.0)
            bar = "#" * int(share * BAR)
            parts = [f"[{bar:-<{BAR}}] {share:4.0%}", f"{amount(size)} of {amount(total.size)}"]
            if total.files > 1:
                parts.append(f"file {min(progress.files + 1, total.files)} of {total.files}")
        parts.append(f"{amount(rate)}/s" if rate else "-")
        if rate and total is not None:
            parts.append(f"{duration(max(total.size - size, 0) / rate)} left")
        parts.append(printable(progress.path[-60:].decode("utf-8", "replace")))
        return "  ".join(parts)

    def finish(self, progress: Progress) -> None:
        """The summary."""
        if not self._quiet:
            # The wait for the other end is not part of it.
            seconds = self._clock() - (self._begun if self._joined is None else self._joined)
            files = "1 file" if progress.files == 1 else f"{progress.files} files"
            text = f"{self._verb} {files}, {amount(progress.size)} in {seconds:.1f} s"
            self._say(text + (f", {self.failures} failed" if self.failures else ""))

    def _say(self, text: str) -> None:
        if self._has_line:
            sys.stderr.write("\r\x1b[K")
            self._has_line = False
        print(text, file=sys.stderr, flush=True)


def amount(size: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds as people read them: 0:07, 12:30, 1:02:03."""
    whole = min(round(seconds), 359999)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
