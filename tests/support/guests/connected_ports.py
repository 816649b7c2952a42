"""How many host connections a guest learns of when that many ports are connected before its driver starts.

`PYTHONPATH=src:tests python3 -m support.guests.connected_ports [COUNT...]` prints the table, QEMU's device beside ours.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass

from support.guests.host_device import QemuDevice, VirtserialDevice

from virtserial.rig import Guest

LOOK = """
import glob, os, time
base = '/sys/class/virtio-ports'
def look():
    ports = [n for n in os.listdir(base) if not n.endswith('p0')] if os.path.isdir(base) else []
    named = {n: open(f'{base}/{n}/name').read().strip() for n in ports if os.path.exists(f'{base}/{n}/name')}
    states = {}
    for port in ports:
        try:
            with open(f'/sys/kernel/debug/virtio-ports/{port}') as file:
                states[port] = 'host_connected: 1' in file.read()
        except FileNotFoundError:
            pass
    return ports, {n: name for n, name in named.items() if name}, sorted(n for n, state in states.items() if state)
# Until all is there, or nothing has changed for two seconds.
last, since = look(), time.monotonic()
while min(len(last[1]), len(last[2])) < WANTED and time.monotonic() - since < 2:
    time.sleep(0.1)
    now = look()
    if now != last:
        last, since = now, time.monotonic()
for port in last[2]:
    fd = os.open('/dev/' + port, os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, b'from ' + last[1].get(port, '?').encode())
    os.close(fd)
print(len(last[0]), len(last[1]), len(last[2]))
"""


@dataclass(frozen=True)
class ConnectedPorts:
    """What the guest sees of the ports that are connected, and how many of them carried a message to the host."""

    ports: int
    named: int
    connected: int
    delivered: int


def connected_at_boot(device, count):
    """Boots a guest with `count` ports whose host ends (files) are connected from the start.

    Args:
        device: QemuDevice or VirtserialDevice.
        count: 1 to 510 ports.
    """
    with tempfile.TemporaryDirectory(prefix="vs-many-") as folder:
        options = ["-device", f"virtio-serial,id=ser0,max_ports={count + 1}"]
        for number in range(1, count + 1):
            options += ["-chardev", f"file,id=c{number},path={folder}/{number}"]
            options += ["-device", f"virtserialport,nr={number},chardev=c{number},name=port{number}"]
        memory = 256 if count < 100 else 768
        with device.attach(options) as attached, Guest(attached.arguments, memory_mib=memory) as guest:
            seen = guest.python(LOOK.replace("WANTED", str(count)), timeout=120).split()
        delivered = 0
        for number in range(1, count + 1):
            with open(f"{folder}/{number}") as file:
                delivered += file.read() == f"from port{number}"
    return ConnectedPorts(*map(int, seen), delivered)


def main(counts):
    """Prints the table."""
    print("| connected ports at boot | device | ports | named | connected | delivered a message |")
    print("|---|---|---|---|---|---|")
    for count in counts:
        for device in (QemuDevice(), VirtserialDevice()):
            try:
                seen = connected_at_boot(device, count)
            except Exception as error:
                print(f"| {count} | {device.kind} | failed: {str(error).splitlines()[0]} |")
            else:
                row = f"{seen.ports} | {seen.named} | {seen.connected} | {seen.delivered}"
                print(f"| {count} | {device.kind} | {row} |", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [15, 16, 20, 30, 60, 510])
