"""Records what QEMU's vhost-user front end says, for tests/vhost_user/sequences/qemu.toml:

    PYTHONPATH=src:tests python3 -m support.vhost_user_recorder

A guest boots, its first named port is used, the VM is stopped and goes on, the guest reboots; the lists are printed.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time

from support.guests.exchange import exchange, socket_port
from support.guests.host_device import VhostUserDevice
from support.played_front_end import FIELDS
from support.vfio_tap import close_all, receive, send

from virtserial.options.vhost_user_device import vhost_user_words
from virtserial.rig import Guest
from virtserial.vhost_user import wire

QUIET = 3
"""Seconds after which nothing more is said."""


class Recorder(threading.Thread):
    """Passes a front end's messages on to the device.

    Attributes:
        lines: what was said since `take`.
        regions: of the last memory table.
    """

    def __init__(self, path, device):
        super().__init__(daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._device_path = device
        self.lines, self.regions = [], []
        self._bases = {}
        self.start()

    def run(self):
        front_end, _ = self._listener.accept()
        device = socket.socket(socket.AF_UNIX)
        device.connect(self._device_path)
        threading.Thread(target=self._pass_back, args=(device, front_end), daemon=True).start()
        while (received := _receive(front_end)) is not None:
            data, fds = received
            self.lines.append(self._line(wire.unpack_header(data), data[wire.HEADER_SIZE :], fds))
            send(device, data, fds)
            close_all(fds)
        device.shutdown(socket.SHUT_RDWR)

    def _pass_back(self, device, front_end):
        while (received := _receive(device)) is not None:
            data, _ = received
            if wire.unpack_header(data).request == wire.VHOST_USER_GET_VRING_BASE:
                queue, base = wire.unpack(wire.VringState, data[wire.HEADER_SIZE :])
                self._bases[queue] = base
            front_end.sendall(data)

    def _line(self, header, payload, fds):
        name = header.name.removeprefix("VHOST_USER_")
        words = [name]
        if name == "SET_MEM_TABLE":
            self.regions = wire.unpack_table(payload)
        elif name in ("ADD_MEM_REG", "REM_MEM_REG"):
            region = wire.unpack(wire.MemoryRegion, payload[len(wire.SLOT_PADDING) :])
            if region not in self.regions:
                self.regions.append(region)
            words.append(str(self.regions.index(region)))
        elif name in FIELDS:
            numbers = FIELDS[name].unpack_from(payload)
            words += [f"{number:#x}" if number > 0xFFFF else str(number) for number in numbers]
            if name == "SET_VRING_BASE" and self._bases.get(numbers[0]) == numbers[1]:
                words[2] = "BASE"
        elif payload:
            words.append(payload.hex())
        return " ".join(words + ["ack"] * bool(header.flags & wire.NEED_REPLY)) + f"  # {len(fds)}" * bool(fds)

    def take(self):
        """What was said since the last time, once it is quiet."""
        count = -1
        while count != len(self.lines):
            count = len(self.lines)
            time.sleep(QUIET)
        taken, self.lines = self.lines, []
        return taken


def _receive(connection):
    return receive(connection, wire.HEADER_SIZE, lambda data: wire.HEADER_SIZE + wire.unpack_header(data).size)


def main():
    with tempfile.TemporaryDirectory(prefix="vs-record-") as folder:
        options = ["-device", "virtio-serial,id=ser0,max_ports=2"]
        options += ["-chardev", f"socket,id=con,path={folder}/con,server=on,wait=off"]
        options += ["-device", "virtconsole,chardev=con,nr=0,bus=ser0.0"]
        options += socket_port(1, "a", f"{folder}/a", "ser0")
        with VhostUserDevice().attach(options) as attached:
            path = attached.per_controller[0][1].partition("path=")[2]
            recorder = Recorder(f"{folder}/tap", path)
            with Guest(vhost_user_words("tap", f"{folder}/tap", 2)) as guest:
                parts = {"connect and activate": recorder.take()}
                exchange(guest, {"a": f"{folder}/a"}, mib=1)
                parts["used"] = recorder.take()
                guest.qmp("stop")
                parts["stop"] = recorder.take()
                guest.qmp("cont")
                parts["cont"] = recorder.take()
                guest.reboot()
                parts["reboot"] = recorder.take()
            parts["end"] = recorder.take()
            print(attached.log)
    for part, lines in parts.items():
        print(f"\n{part} = [", *(f"  {line}" for line in lines), "]", sep=os.linesep)
    print(*recorder.regions, sep=os.linesep)


if __name__ == "__main__":
    main()
