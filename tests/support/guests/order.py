"""What a host does first, does the guest learn it first?  A host connects to port B, then sends a request over port A.

The guest, told by A to read B, must not find B unconnected: an early end of file.  `PYTHONPATH=src:tests python3 -m
support.guests.order [TRIES] [--busy]` prints how often it does, on QEMU's device and on ours.
"""

from __future__ import annotations

import socket
import sys
import tempfile
from pathlib import Path

from support.guests.host_device import QemuDevice, VirtserialDevice
from support.places import ROOT

from virtserial.rig import Guest

GUEST_SIDE = """
import os, time
a = os.open('/dev/virtio-ports/a', os.O_RDWR)
left = TRIES
while left:
    if os.read(a, 1) != b'r':
        time.sleep(0.001)
        continue
    b = os.open('/dev/virtio-ports/b', os.O_RDWR)
    answer = b'G' if os.read(b, 1) else b'E'
    # Before the answer: what the next host sends must find the port closed, since closing it discards what waits.
    os.close(b)
    os.write(a, answer)
    left -= 1
os.close(a)
"""


def options_in(folder):
    """A controller with ports a and b, listening sockets."""
    words = ["-device", "virtio-serial,id=ser0"]
    for number, name in enumerate("ab", 1):
        words += ["-chardev", f"socket,id=c{name},path={folder}/{name},server=on,wait=off"]
        words += ["-device", f"virtserialport,nr={number},chardev=c{name},name={name}"]
    return words


def connected(path):
    host = socket.socket(socket.AF_UNIX)
    host.settimeout(60)
    host.connect(str(path))
    return host


def early_ends(guest, folder, tries):
    """How often of so many tries the guest has found B at its end."""
    job = guest.start_python(GUEST_SIDE.replace("TRIES", str(tries)))
    early = 0
    with connected(Path(folder) / "a") as a:
        for _ in range(tries):
            with connected(Path(folder) / "b") as b:
                a.sendall(b"r")
                b.sendall(b"x")
                early += a.recv(1) == b"E"
    job.wait(60)
    return early


def measure(device, tries):
    """`early_ends` of a machine of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="vs-order-") as folder,
        device.attach(options_in(folder)) as attached,
        Guest(attached.arguments) as guest,
    ):
        guest.check("for n in $(seq 1200); do [ -e /dev/virtio-ports/b ] && exit; sleep 0.05; done; exit 1")
        early_ends(guest, folder, 10)
        return early_ends(guest, folder, tries)


def main(tries, busy):
    """Print the figures."""
    sys.path.append(str(ROOT / "benchmarks"))
    from busy import one_busy_core

    for device in (QemuDevice(), VirtserialDevice(), QemuDevice(), VirtserialDevice()):
        if busy:
            with one_busy_core():
                early = measure(device, tries)
        else:
            early = measure(device, tries)
        print(f"{device.kind}: {early} early ends in {tries} tries{', one core busy' if busy else ''}", flush=True)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main(numbers[0] if numbers else 400, "--busy" in sys.argv)
