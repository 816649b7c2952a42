"""QEMU's half of a vhost-user controller: a chardev at our socket, and the one device of QEMU's for any back end."""

from __future__ import annotations

import os

from virtserial.console.wire import CONFIG, VIRTIO_ID_CONSOLE, queue_count

VQ_SIZE = 128
"""Entries of each queue; QEMU's device has one size for all."""
MAX_QUEUES = 256
"""QEMU names a queue by 8 bits when it gives an eventfd for it."""


def vhost_user_words(name: str, path: str, max_ports: int) -> list[str]:
    """Return the words for QEMU's command line (10.2 or newer) that attach a controller.

    Args:
        name: the chardev's id.
        path: of our socket.
    """
    place = os.path.abspath(path).replace(",", ",,")
    queues = f"num_vqs={queue_count(max_ports)},vq_size={VQ_SIZE},config_size={CONFIG.size}"
    return [
        *("-chardev", f"socket,id={name},path={place}"),
        *("-device", f"vhost-user-test-device-pci,chardev={name},virtio-id={VIRTIO_ID_CONSOLE},{queues}"),
    ]


def vhost_user_argument(name: str, path: str, max_ports: int) -> str:
    """Return these words quoted for a shell; a comment for it where QEMU cannot have so many ports."""
    if queue_count(max_ports) > MAX_QUEUES:
        return f"# {path}: QEMU has at most max_ports={MAX_QUEUES // 2 - 1} over vhost-user"
    import shlex  # late: only vhost-user needs it, and a start is counted in milliseconds

    return shlex.join(vhost_user_words(name, path, max_ports))
