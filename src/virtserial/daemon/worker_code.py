"""What the keeper's workers run.  Only this module knows of both: the keeper gets it from whoever makes the keeper."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import NoReturn

    from virtserial.channel.channel import WorkerEnd


class InstalledWorker:
    """keeper.worker_process.WorkerCode.  Its imports are late: the first socket listens before they are needed."""

    fronts: Collection[bool] = (False, True)
    """Which a worker reads before it is confined, by `Controller.vhost_user`: all that may be plugged in."""
    spawned = "virtserial.daemon.worker.worker:run_spawned"

    def run_forked(self, parent: object, channel: WorkerEnd) -> NoReturn:
        _leave_keeper(channel.fileno())
        gc.disable()  # until all has been read: it would look through the keeper's objects again and again
        from virtserial.daemon.worker.worker import front_of, run_forked

        for vhost_user in self.fronts:
            front_of(vhost_user)
        run_forked(parent, channel)

    def read_ahead(self) -> None:
        import virtserial.daemon.worker.sandbox  # noqa: F401
        from virtserial.daemon.worker.worker import front_of
        from virtserial.host_end.preparation import import_host_ends

        for vhost_user in self.fronts:
            front_of(vhost_user)
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
