"""Unchecked bytes in both directions, to have a device busy while something happens to it."""

from __future__ import annotations

import threading

from support.guests.host_end import HostEnd


class Drain:
    """A host that reads a port and throws it away, and writes to it all the time."""

    def __init__(self, path):
        self._end = HostEnd(path, timeout=0.2)
        self._stop = threading.Event()
        self.received = 0
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._write)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._end.close()

    def _read(self):
        while not self._stop.is_set():
            try:
                data = self._end.socket.recv(1 << 18)
            except TimeoutError:
                continue
            self.received += len(data)
            if not data:
                return

    def _write(self):
        while not self._stop.is_set():
            try:
                self._end.socket.send(bytes(65536))
            except TimeoutError:
                continue
            except OSError:
                return


def start_load(guest, names):
    """Both ports busy from the guest's side, one in each direction; the jobs end when their port goes."""
    guest.check("for n in $(seq 1200); do [ $(ls /dev/virtio-ports | wc -l) = 2 ] && exit; sleep 0.05; done; exit 1")
    return [
        guest.start(f"exec cat /dev/zero >/dev/virtio-ports/{names[0]}"),
        guest.start(f"exec cat /dev/virtio-ports/{names[1]} >/dev/null"),
    ]
