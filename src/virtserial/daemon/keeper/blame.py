"""Whom to part from when one worker after the other ends, so that the next can serve all others.

| workers in a row | what the ledger says | follows |
|---|---|---|
| 2 died, or hung | a controller was being restored, and no batch was under way, or one of its own | its VMM's connection is closed |
| 3 hung | each was moving bytes between the same port and its back end | the back end is disconnected |

Only a call on a file that waits for its file system, or a handler class that does not return, hold a worker up: the
devices beside it did nothing.
"""  # noqa: E501  # rows of a table

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from virtserial.accounting import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.daemon.keeper.worker_process import Remains

HANGS: Final = 3
"""Workers in a row that hang over one port."""


class Blame:
    """
    Args:
        detach: closes the VMM's connection of a controller.
        disconnect: disconnects the back end of a port: controller and number of the port.
    """

    def __init__(self, detach: Callable[[int], None], disconnect: Callable[[int, int], None]) -> None:
        self._detach = detach
        self._disconnect = disconnect
        self._restoring: int | None = None
        self._port: tuple[int, int] | None = None
        self._hangs = 0

    def serves(self) -> None:
        """A worker has restored all controllers."""
        self._restoring = None

    def ended(self, remains: Remains, code: int, *, by_keeper: bool) -> None:
        """A worker has ended without being asked to.

        Args:
            code: its exit code, or the negative signal.
            by_keeper: the keeper has ended it, because it hung or lied.
        """
        port = next(
            (
                (note.controller, note.queue - 2 >> 1 if note.queue > 1 else 0)
                for note in remains.notes
                if note.kind in (WRITE, READ)
            ),
            None,
        )
        if by_keeper and port is not None:
            self._hung_over(port)
            return
        self._port = None
        if remains.restoring is None or (code == -signal.SIGKILL and not by_keeper):
            return  # A kill from outside says nothing.
        if port is not None and port[0] != remains.restoring:
            return
        before, self._restoring = self._restoring, remains.restoring
        if before == remains.restoring:
            self._restoring = None
            self._detach(remains.restoring)

    def _hung_over(self, port: tuple[int, int]) -> None:
        self._hangs = self._hangs + 1 if port == self._port else 1
        self._port = port
        if self._hangs == HANGS:
            self._port = None
            self._disconnect(*port)
