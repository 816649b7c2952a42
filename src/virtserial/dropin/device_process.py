"""The device process of one virtual machine: keeper, worker and monitors, from before QEMU starts until it ends."""

from __future__ import annotations

import contextlib
import logging
import resource
from typing import TYPE_CHECKING, Self

from virtserial.daemon.keeper.keeper import Keeper
from virtserial.daemon.worker_code import InstalledWorker
from virtserial.dropin.memory import share_object
from virtserial.dropin.run_folder import hold
from virtserial.loop import EventLoop
from virtserial.migration.start import peer_of
from virtserial.monitor.joined import JoinedMonitors
from virtserial.monitor.registry import Registration
from virtserial.standard_error import LineHandler, release

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from virtserial.dropin.plan import Plan

MAX_DESCRIPTORS = 1 << 18


class DeviceProcess:
    """Keeper and monitors for a plan; as a context manager it cleans up.

    Args:
        streams: our ends of the streams to QEMU, by name.
        run_directory: folder of our controllers' sockets; removed at the end.
    """

    def __init__(self, plan: Plan, streams: Mapping[str, socket.socket], run_directory: str) -> None:
        form = "virtserial-qemu: %(message)s"
        logging.basicConfig(level=logging.WARNING, format=form, handlers=[LineHandler()])
        _raise_descriptor_limit()
        self._run_directory = run_directory
        self._held = hold(run_directory)
        self._loop = EventLoop()
        # Whatever takes pages of this QEMU's memory away, such as huge ones, hits QEMU itself first.
        self._keeper = Keeper(
            self._loop, InstalledWorker(), plan.machine, plan.chardevs, trust_vmm=True, objects=plan.objects
        )
        self._monitors = JoinedMonitors(
            self._keeper,
            plan.monitors,
            streams,
            chardev_texts=plan.chardev_texts,
            share_object=share_object,
            run_directory=run_directory,
            newest_is_qemus=plan.newest_is_qemus,
            # The streams were made by the process that becomes QEMU, unless QEMU leaves that.
            start=plan.start._replace(qemu_pid=None if plan.daemonize else peer_of(streams["control"])[0]),
        )
        self._registration = Registration(self._keeper, plan.name)
        for member in plan.descriptor_sets:
            self._monitors.operations.descriptor_sets.add(member.fd, member.set, member.opaque)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        import shutil

        self._registration.end()
        try:
            self._monitors.close()
            self._keeper.close()
        finally:
            shutil.rmtree(self._run_directory, ignore_errors=True)

    def start(self) -> None:
        """Open everything, and wait for clients where wait=on says so.

        Raises:
            ConfigError: something cannot be opened.
        """
        self._keeper.start()
        self._registration.begin()

    def run(self) -> None:
        """Serve until QEMU has ended."""
        self._loop.run()
        # First of all: libvirt may begin this VM anew at once, and virtlogd refuses while somebody holds its pipe.
        release()
        self._keeper.workers.close()


def _raise_descriptor_limit() -> None:
    """The keeper holds a descriptor for each DMA map, interrupt and connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


