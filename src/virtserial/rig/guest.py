"""A virtual machine with a Linux guest, as a context manager."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from virtserial.client.qmp import QmpClient
from virtserial.errors import VirtserialError
from virtserial.rig.cache import RigUnavailable
from virtserial.rig.channel import AgentChannel, GuestError, GuestSession, Job, Result
from virtserial.rig.guestside import agent
from virtserial.rig.image import extra_archive, guest_image
from virtserial.rig.qemu import find_qemu

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KERNEL_OPTIONS = "console=ttyS0 panic=-1 mitigations=off nokaslr random.trust_cpu=on no_timer_check cryptomgr.notests"
CPU = "max,erms=off,fsrm=off"
"""With "fast string operations" the guest's kernel copies by `rep movsb`, which TCG does byte by byte."""
SHARED_MEMORY = {
    True: "memory-backend-memfd,id=memory,size={size}M,share=on",
    False: "memory-backend-ram,id=memory,size={size}M",
    "file": "memory-backend-file,id=memory,size={size}M,share=on,mem-path={folder}/memory",
}
# A test run that is killed itself leaves no QEMU behind.
ENDS_WITH_ITS_PARENT = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
VIOMMU = ("-device", "intel-iommu,intremap=on,caching-mode=on")


def machine_arguments(
    folder: str,
    *,
    memory_mib: int,
    smp: int,
    shared_memory: bool | Literal["file"],
    iommu: bool,
    append: str,
    initramfs: Path,
) -> list[str]:
    """QEMU's options for the rig's machine, without its serial lines, monitor and devices under test."""
    command_line = f"{KERNEL_OPTIONS} {'intel_iommu=on ' if iommu else ''}{append}".strip()
    return [
        *("-machine", "q35,memory-backend=memory", "-accel", "tcg", "-cpu", CPU, "-smp", str(smp)),
        *("-m", str(memory_mib), "-object", SHARED_MEMORY[shared_memory].format(size=memory_mib, folder=folder)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *(VIOMMU if iommu else ()),
        *("-kernel", str(guest_image().kernel), "-initrd", str(initramfs), "-append", command_line),
    ]


class Guest:
    """A QEMU (TCG) with Debian's cloud kernel and the rig's agent.

    Attributes:
        boot_seconds: from QEMU's start (or the reboot) to the agent's first word.
        pid: QEMU's process id.
        folder: a temporary folder of this guest, removed at the end.
        qmp: a client of QEMU's monitor: guest.qmp("query-status").
    """

    def __init__(
        self,
        devices: Sequence[str] = (),
        *,
        memory_mib: int = 256,
        smp: int = 1,
        shared_memory: bool | Literal["file"] = True,
        iommu: bool = False,
        append: str = "",
        qemu_extra: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
        boot_timeout: float = 180,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Describes the machine; entering the context starts it and waits for the agent.

        Args:
            devices: QEMU's options for the devices under test.
            memory_mib: the guest's memory; shared with device processes as shared_memory says: True for a sealed
                memfd, "file" for a file on disk (no seals), False for anonymous memory (nothing is shared).
            smp: virtual CPUs.
            iommu: an Intel vIOMMU that the guest's kernel uses for all devices.
            append: words for the kernel's command line; `rig.modules=...` chooses what the guest loads.
            qemu_extra: further options of QEMU, after the devices.
            files: files to add to the guest's root: absolute path to content.
            boot_timeout: seconds until the agent must have answered.
            pass_fds: descriptors that QEMU inherits.
        """
        self._devices = list(devices)
        self._memory_mib, self._smp, self._shared_memory, self._iommu = memory_mib, smp, shared_memory, iommu
        self._append, self._qemu_extra, self._files = append, list(qemu_extra), dict(files or {})
        self._boot_timeout = boot_timeout
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: AgentChannel | None = None
        self._qmp: QmpClient | None = None
        self.folder = Path()
        self.boot_seconds = 0.0

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException as error:
            text = self.diagnosis()
            self.close()
            if isinstance(error, (VirtserialError, OSError)) and not isinstance(error, RigUnavailable):
                raise GuestError(f"{error}\n{text}") from error
            raise
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            error.add_note(self.diagnosis())
        self.close()

    def _start(self) -> None:
        program = find_qemu()
        image = guest_image()
        self.folder = Path(tempfile.mkdtemp(prefix="virtserial-guest-"))
        initramfs = image.initramfs
        if self._files:
            initramfs = self.folder / "initramfs"
            shutil.copyfile(image.initramfs, initramfs)
            with initramfs.open("ab") as file:
                file.write(extra_archive(self._files))
        agent_end, agent_line = socket.socketpair()
        qmp_end, qmp_line = socket.socketpair()
        with agent_line, qmp_line:
            arguments = [
                *ENDS_WITH_ITS_PARENT,
                *program.command,
                *machine_arguments(
                    str(self.folder),
                    memory_mib=self._memory_mib,
                    smp=self._smp,
                    shared_memory=self._shared_memory,
                    iommu=self._iommu,
                    append=self._append,
                    initramfs=initramfs,
                ),
                *("-serial", f"file:{self.folder}/kernel.log"),
                *("-chardev", f"socket,id=rig-agent,fd={agent_line.fileno()}", "-serial", "chardev:rig-agent"),
                *("-chardev", f"socket,id=rig-qmp,fd={qmp_line.fileno()}", "-qmp", "chardev:rig-qmp"),
                *self._devices,
                *self._qemu_extra,
            ]
            started = time.monotonic()
            with (self.folder / "stderr").open("wb") as stderr:
                self._process = subprocess.Popen(
                    arguments,
                    env={**os.environ, **program.environment},
                    pass_fds=(agent_line.fileno(), qmp_line.fileno(), *self._pass_fds),
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                )
        self._channel = AgentChannel(agent_end)
        self._qmp = QmpClient(qmp_end, 60)
        self._channel.wait_for_boot(self._boot_timeout)
        self.boot_seconds = time.monotonic() - started

    @property
    def channel(self) -> AgentChannel:
        """The agent's channel."""
        if self._channel is None:
            raise GuestError("the guest has not been started")
        return self._channel

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        if self._process is None:
            raise GuestError("the guest has not been started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether QEMU runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def stderr(self) -> str:
        """What QEMU has said."""
        return self._text("stderr")

    def kernel_log(self) -> str:
        """What the guest's kernel has said on its serial console, over all boots."""
        return self._text("kernel.log")

    def diagnosis(self) -> str:
        """QEMU's messages and the end of the kernel's log, for an error's text."""
        status = self._process.poll() if self._process else None
        return f"QEMU (status {status}): {self.stderr.strip()}\nkernel: ...{self.kernel_log()[-1500:].strip()}"

    def qmp(self, command: str, **arguments: object) -> Any:  # noqa: ANN401  # a JSON value
        """Runs a QMP command and gives its `return` value.

        Raises:
            QmpError: QEMU refuses it.
        """
        return self.monitor(command, **arguments)

    @property
    def monitor(self) -> QmpClient:
        """The client of QEMU's monitor, with its events."""
        if self._qmp is None:
            raise GuestError("the guest has not been started")
        return self._qmp

    def start(self, command: str) -> Job:
        """Starts a shell command in the guest."""
        return self.channel.start(agent.RUN, command.encode(), command)

    def run(self, command: str, timeout: float = 60) -> Result:
        """Runs a shell command in the guest and waits for its end."""
        return self.start(command).wait(timeout)

    def check(self, command: str, timeout: float = 60) -> str:
        """Runs a shell command that must succeed; its output, without the last line's end.

        Raises:
            GuestError: its exit status is not 0.
        """
        result = self.run(command, timeout)
        if result.status:
            raise GuestError(f"{command}: exit status {result.status}: {result.text}")
        return result.text.rstrip("\n")

    def start_python(self, source: str) -> Job:
        """Starts a Python script in the guest, forked from the resident interpreter."""
        return self.channel.start(agent.PYTHON, source.encode(), "script")

    def python(self, source: str, timeout: float = 60) -> str:
        """Runs a Python script in the guest that must succeed; its output.

        Raises:
            GuestError: it raised or exited with another status than 0.
        """
        result = self.start_python(source).wait(timeout)
        if result.status:
            raise GuestError(f"script: exit status {result.status}: {result.text}")
        return result.text

    def session(self) -> GuestSession:
        """A Python interpreter in the guest that keeps its state from call to call."""
        return GuestSession(self.channel)

    def write_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Writes a file in the guest, with the folders above it (about 90 kB/s: put big ones in `files`)."""
        self.channel.write_file(path, data, mode)

    def read_file(self, path: str) -> bytes:
        """The content of a file in the guest."""
        return self.channel.read_file(path)

    def reboot(self, timeout: float | None = None) -> None:
        """Reboots from inside, without notice to anything that runs, and waits for the agent of the next boot."""
        before = self.channel.boot_id
        started = time.monotonic()
        self.start("reboot -f")
        self.channel.wait_for_boot(timeout or self._boot_timeout, before)
        self.boot_seconds = time.monotonic() - started

    def kill(self) -> None:
        """Ends QEMU by SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait_for_end(self, timeout: float = 60) -> int:
        """Wait until QEMU has ended, of itself or by its monitor; return its exit status, -N for signal N."""
        assert self._process is not None
        return self._process.wait(timeout)

    def pause(self) -> None:
        """SIGSTOPs QEMU: the VMM hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a stopped QEMU go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Ends QEMU and removes the guest's folder; any number of calls."""
        self.kill()
        for closable in (self._channel, self._qmp):
            if closable is not None:
                closable.close()
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(errors="replace")
        except OSError:
            return ""
