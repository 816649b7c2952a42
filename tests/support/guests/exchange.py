"""Checked transfers between host and guest over several ports at once."""

from __future__ import annotations

import os

from support.guests.guest_side import TRANSFER
from support.guests.host_end import HostEnd, HostTransfer

MIB = 1 << 20


def exchange(guest, sockets, mib=8, block_bytes=MIB, timeout=180):
    """Moves `mib` MiB of random bytes each way over every port at once and compares the sha1 of both sides.

    Args:
        guest: the guest.
        sockets: port name -> path of its host socket.
        mib: MiB in each direction and port.
        block_bytes: the random block that is sent over and over.
        timeout: seconds for all of it.
    """
    repeat, total = mib * MIB // block_bytes, mib * MIB
    ends = {name: HostEnd(path, timeout) for name, path in sockets.items()}
    transfers = {name: HostTransfer(end, os.urandom(block_bytes), repeat, total) for name, end in ends.items()}
    try:
        jobs = {
            name: guest.start(
                TRANSFER.format(
                    port=f"/dev/virtio-ports/{name}",
                    name=name,
                    block_bytes=block_bytes,
                    repeat=repeat,
                    expected_blocks=total >> 16,
                )
            )
            for name in sockets
        }
        for name, job in jobs.items():
            result = job.wait(timeout)
            assert result.status == 0, f"{name}: in the guest: {result.text}"
            sent, received = result.text.split()
            transfers[name].join()
            assert transfers[name].received_sha1 == sent, f"{name}: guest to host"
            assert transfers[name].sent_sha1 == received, f"{name}: host to guest"
    finally:
        for end in ends.values():
            end.shut()
        for transfer in transfers.values():
            transfer.join()
        for end in ends.values():
            end.close()


def socket_port(number, name, path, bus=""):
    """The options of a port on a listening unix socket."""
    place = f",bus={bus}.0" if bus else ""
    return [
        *("-chardev", f"socket,id=chr-{name},path={path},server=on,wait=off"),
        *("-device", f"virtserialport,nr={number},chardev=chr-{name},name={name},id=port-{name}{place}"),
    ]
