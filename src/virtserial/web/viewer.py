"""One browser's terminal, as the hub of its port sees it: what waits to be sent to it, within bounds.

| a browser | what happens |
|---|---|
| has more than WINDOW bytes that it has not shown yet | output waits for it here |
| has LIMIT bytes waiting here | the port waits for it |
| lets the port wait for a second (hub.py) | it lags: nobody waits for it, its oldest bytes are dropped and counted |
| has shown everything that there is | it lags no more |

A browser says how much it has shown.  So the bound holds for its own memory too, which a socket alone does not do: the
script receives whatever the network brings.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.web.people import User

LIMIT = 256 << 10
WINDOW = 256 << 10
PIECE = 32 << 10
"""Bytes of one message."""


class Viewer:
    """
    Args:
        user: who looks.
        types: whether they may type.
        drained: called when the hub may go on.

    Attributes:
        size: columns and rows that their window has room for; None while unknown.
        lagging: nobody waits for it.
        lost: bytes that it did not get.
    """

    def __init__(self, user: User, types: bool, drained: Callable[[], None]) -> None:
        self.user = user
        self.types = types
        self.size: tuple[int, int] | None = None
        self.lagging = False
        self._drained = drained
        self._waiting: deque[bytes] = deque()
        self._count = 0
        self._unshown = 0
        self.lost = 0
        self._notes: dict[str, object] = {}
        self._more = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether the port should wait for it."""
        return self._count >= LIMIT and not self.lagging

    def offer(self, data: bytes) -> None:
        """Output of the port."""
        self._waiting.append(data)
        self._count += len(data)
        while self._count - len(self._waiting[0]) >= LIMIT and len(self._waiting) > 1:
            gone = len(self._waiting.popleft())
            self._count -= gone
            self.lost += gone
            self._notes["lost"] = self.lost
        self._more.set()

    def note(self, **facts: object) -> None:
        """Tell the browser something; a newer fact of the same name takes the older one's place."""
        self._notes |= facts
        self._more.set()

    def shown(self, count: int) -> None:
        """The browser has shown so many bytes more."""
        self._unshown = max(self._unshown - count, 0)
        self._more.set()
        self._caught_up()

    async def next(self) -> tuple[dict[str, object], bytes]:
        """Wait; return what to tell, then what to show."""
        while not self._notes and not (self._waiting and self._unshown < WINDOW):
            self._more.clear()
            await self._more.wait()
        notes, self._notes = self._notes, {}
        pieces: list[bytes] = []
        while self._waiting and self._unshown < WINDOW and sum(map(len, pieces)) < PIECE:
            pieces.append(self._waiting.popleft())
            self._count -= len(pieces[-1])
            self._unshown += len(pieces[-1])
        self._caught_up()
        if not self.is_full:
            self._drained()
        return notes, b"".join(pieces)

    def _caught_up(self) -> None:
        if not self._waiting and not self._unshown:
            self.lagging = False
