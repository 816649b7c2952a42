"""What the keeper's workers run.  Only this module knows of both: the keeper gets it from whoever makes the keeper."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

    from virtserial.channel.channel import WorkerEnd


class InstalledWorker:
    """keeper.worker_process.WorkerCode.  Its imports are late: the first socket listens before they are needed."""

    spawned = "virtserial.daemon.worker.worker:run_spawned"

    def run_forked(self, parent: object, channel: WorkerEnd) -> NoReturn:
        from virtserial.daemon.worker.worker import run_forked

        run_forked(parent, channel)

    def read_ahead(self) -> None:
        import virtserial.daemon.worker.sandbox
        import virtserial.daemon.worker.worker  # noqa: F401
        from virtserial.host_end.preparation import import_host_ends

        import_host_ends()
