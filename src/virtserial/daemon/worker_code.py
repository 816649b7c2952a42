"""What the keeper's workers run.  Only this module knows of both: the keeper gets it from whoever makes the keeper."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

    from virtserial.channel.channel import WorkerEnd


class InstalledWorker:
    """keeper.worker_process.WorkerCode.  Its imports are late: the first socket listens before they are needed."""

    spawned = "virtserial.daemon.worker.worker:run_spawned"

    def run_forked(self, parent: object, channel: WorkerEnd) -> NoReturn:
        _leave_keeper(channel.fileno())
        from virtserial.daemon.worker.worker import run_forked

        run_forked(parent, channel)

    def read_ahead(self) -> None:
        import virtserial.daemon.worker.sandbox
        import virtserial.daemon.worker.worker  # noqa: F401
        from virtserial.host_end.preparation import import_host_ends

        import_host_ends()


def _leave_keeper(channel: int) -> None:
    """Let go of the keeper's signals, and close its descriptors but the channel and standard input, output and error.

    Before anything is imported: who waits for an end of file, as the reader of --ready-fd does, waits for this too.
    """
    # As in worker.run_spawned: a signal to the whole group is the keeper's matter.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.closerange(3, channel)
    os.closerange(channel + 1, os.sysconf("SC_OPEN_MAX"))
    if (logs := sys.modules.get("virtserial.logs")) is not None:
        logs.reopen()  # Only a keeper that needs that module has loaded it.
