"""What TARGET names: a device behind a socket, or one of a QEMU."""

from __future__ import annotations

import errno
import os
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from virtserial.conformance.check import Target
from virtserial.conformance.host_ends import HostEnds
from virtserial.conformance.qemu_machine import QemuMachine
from virtserial.conformance.vfio_user_vmm import LegacyVmm, Vmm
from virtserial.conformance.vhost_user_vmm import FrontEndVmm
from virtserial.errors import PeerError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

MANY_PORTS = 30


class SocketMachine:
    """A device at a socket; whoever serves it may be anybody.

    Args:
        vmm: is connected to it; owned from here on.
        addresses: the host's ends of its ports, as far as they are known.
        met: the names of targets whose host ends all listened once; gets this one's.  Only those are waited for.
    """

    def __init__(self, name: str, vmm: Vmm | FrontEndVmm, addresses: Mapping[int, str], met: set[str]) -> None:
        self.name = name
        self._vmm = vmm
        self.hosts = HostEnds(addresses, lambda: name in met)
        self.read, self.write = vmm.read, vmm.write
        self.load, self.store = vmm.load, vmm.store
        self.step, self.settle = vmm.step, vmm.settle
        try:
            self.hosts.connect_all()
        except BaseException:
            self.close()
            raise
        met.add(name)

    def heard(self) -> bytes | None:
        return self.hosts.take() if 1 in self.hosts else None

    def told(self) -> bool | None:
        return None

    def check(self) -> None:
        """It lives as long as it answers."""
        self.step()

    def close(self) -> None:
        self.hosts.close()
        self._vmm.close()


def parse_target(text: str, addresses: Mapping[int, str], *, legacy: bool = False) -> Target:
    """Return the target of vfio-user:PATH, vhost-user:PATH, or qemu:[COMMAND LINE].

    Args:
        addresses: of the host's ends, by port number.
        legacy: use the legacy interface, which only a vfio-user device has here.

    Raises:
        UsageError: it is none of these.
    """
    kind, colon, rest = text.partition(":")
    if legacy and kind != "vfio-user":
        raise UsageError(f"{text}: --legacy goes with vfio-user:PATH alone")
    if kind == "qemu" and colon:
        return _qemu(text, shlex.split(rest), addresses)
    path = Path(rest)
    met: set[str] = set()
    if kind == "vfio-user" and rest:
        return Target(text, lambda: _at_socket(text, path, LegacyVmm if legacy else Vmm, addresses, met))
    if kind == "vhost-user" and rest:
        return Target(text, lambda: _at_socket(text, path, FrontEndVmm, addresses, met))
    raise UsageError(
        f"{text}: not a target",
        "write vfio-user:PATH, vhost-user:PATH, qemu: for QEMU's own device, or 'qemu:QEMU\'s command line'",
    )


def _at_socket(
    name: str, path: Path, connect: type[Vmm | FrontEndVmm], addresses: Mapping[int, str], met: set[str]
) -> SocketMachine:
    try:
        vmm = connect(path)
    except OSError as error:
        raise PeerError(f"{path}: {error.strerror or error}") from error
    except PeerError as error:
        if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT):
            raise
        raise PeerError(
            f"{name}: {error}: does another VMM use it, or does it speak another protocol?", error.errno
        ) from error
    return SocketMachine(name, vmm, addresses, met)


def _qemu(name: str, words: list[str], addresses: Mapping[int, str]) -> Target:
    if not words:
        return Target(name, QemuMachine, lambda: QemuMachine(ports=MANY_PORTS), MANY_PORTS)
    program = None if words[0].startswith("-") else words.pop(0)
    if program is not None and os.sep in program and not os.access(program, os.X_OK):
        raise UsageError(f"{program}: no program")
    if not words:
        many = partial(QemuMachine, program=program, ports=MANY_PORTS)
        return Target(name, partial(QemuMachine, program=program), many, MANY_PORTS)
    return Target(name, lambda: QemuMachine(words, addresses, program=program))

