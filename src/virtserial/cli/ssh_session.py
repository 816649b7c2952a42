"""The ProxyCommand of ssh: a session with `virtserial_guest sshd`, or a reason that ssh prints.

With ControlPersist ssh shows nothing of what its ProxyCommand says on standard error.  But it shows why a server
disconnects, also one that has said nothing but its version: so a failure is told as such a server would.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import sys
import time
from typing import TYPE_CHECKING

from virtserial.cli.end import open_in_fleet
from virtserial.cli.ssh import DOMAIN, find_ssh_port
from virtserial.client.named_stream import open_free
from virtserial.errors import ConfigError, PeerError, VirtserialError
from virtserial.guest.conversation import converse
from virtserial.guest.errors import NoPartner, PortError
from virtserial.guest.link import Link
from virtserial.guest.sshd import PORT
from virtserial.guest.tunnel import TunnelClient

if TYPE_CHECKING:
    from virtserial.guest.stream import EpollStream

VERSION = b"SSH-2.0-virtserial\r\n"
SSH_MSG_DISCONNECT = 1
BY_APPLICATION = 11
"""SSH_DISCONNECT_BY_APPLICATION (RFC 4253, 11.1)."""
BLOCK = 8
LEAST_PADDING = 4
FAREWELL = 3.0
"""Seconds for ssh to read the reason."""


def join(name: str, timeout: float) -> int:
    """Join standard input and output to a session; return the exit status.

    Args:
        name: VM or VM/PORT, as a host name with or without DOMAIN.
        timeout: seconds for the guest to answer.

    Raises:
        ConfigError, PeerError: it cannot be; ssh was told, too.
    """
    heard = False
    try:
        name = name.removesuffix(DOMAIN)
        link = Link(TunnelClient.purpose)
        stream, name = _open(name)
        with stream:
            client = TunnelClient(link, stream, sys.stdin.fileno(), sys.stdout.fileno())
            try:
                converse(stream, link, client, timeout)
            except NoPartner:
                raise PeerError(
                    f"'{name}': the guest does not answer ({timeout:g} s): has it started, and does "
                    "`virtserial_guest sshd` run there?"
                ) from None
            except PortError as error:
                raise PeerError(f"'{name}': {error}") from error
            finally:
                client.close()
                heard = client.heard
        if client.failure:
            raise PeerError(f"'{name}': {client.failure}")
    except VirtserialError as error:
        if not heard:
            hint = error.hint if isinstance(error, ConfigError) else ""
            _tell_ssh(f"{error}; {hint}" if hint else str(error))
        raise
    return 0


def _open(name: str) -> tuple[EpollStream, str]:
    """Open the port of a VM of here, or of HOST/VM of the fleet, which as a host's name is VM.HOST; return its name."""
    try:
        found = find_ssh_port(name)
    except ConfigError as error:
        vm, _, host = name.rpartition(".")
        name = name if "/" in name or not vm else f"{host}/{vm}"
        return open_in_fleet(name, error, PORT), name
    return open_free(found), found.full_name


def _tell_ssh(reason: str) -> None:
    """Be the server that disconnects; ssh reads that once it could say something itself, and then closes."""
    deadline = time.monotonic() + FAREWELL
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), VERSION + disconnect(reason))
        while select.select([0], [], [], max(deadline - time.monotonic(), 0))[0] and os.read(0, 1 << 16):
            pass


def disconnect(reason: str) -> bytes:
    """The packet, before any keys are there, by which a server says why it disconnects (RFC 4253, 6 and 11.1)."""
    text = reason.encode()[:400]
    payload = struct.pack(">BII", SSH_MSG_DISCONNECT, BY_APPLICATION, len(text)) + text + struct.pack(">I", 0)
    padding = BLOCK - (5 + len(payload)) % BLOCK
    if padding < LEAST_PADDING:
        padding += BLOCK
    return struct.pack(">IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)
