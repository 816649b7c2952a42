"""Two endless streams over one port, every byte of which is looked at: what is lost or doubled shows at once.

Both directions carry the same random block over and over.  Its length is no round number, so a stream that has lost or
doubled anything goes on at another place of the block.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading

from support.guests.guest_side import PORT_HELPERS
from support.guests.host_end import HostEnd
from support.waiting import wait_until

SEED = 20
BLOCK = random.Random(SEED).randbytes(1_000_003)

GUEST_END = """
import json, os, random, select, time
block = random.Random({seed}).randbytes(1_000_003)
twice = block * 2
fd = open_port({name!r}, os.O_RDWR | os.O_NONBLOCK)
poll = select.poll()
poll.register(fd, select.POLLIN | select.POLLOUT)
until(lambda: not events(fd) & {{'HUP'}})
sent = got = hangups = 0
wrong = target = None
looked = time.monotonic()
while target is None or got < target:
    events_now = poll.poll(500)
    for _, event in events_now:
        hangups += bool(event & select.POLLHUP)
        if event & select.POLLIN:
            data = os.read(fd, 65536)
            at = got % len(block)
            if wrong is None and data != twice[at:at + len(data)]:
                wrong = got
            got += len(data)
        if event & select.POLLOUT and target is None:
            at = sent % len(block)
            try:
                sent += os.write(fd, twice[at:at + 32768])
            except BlockingIOError:
                pass
    if time.monotonic() > looked + 0.3:
        looked = time.monotonic()
        if target is None and os.path.exists('/tmp/stop'):
            target = int(open('/tmp/stop').read())
            poll.modify(fd, select.POLLIN)
print(json.dumps(dict(sent=sent, got=got, wrong=wrong, hangups=hangups)))
"""


class EndlessStreams:
    """A port that is busy both ways until the end.

    Attributes:
        sent: bytes to the guest.
        got: bytes from the guest.
        wrong: where the guest's stream was first another, or None.
    """

    def __init__(self, guest, name, path):
        self._guest = guest
        self.sent = self.got = 0
        self.wrong = None
        self._stop = threading.Event()
        self._end = HostEnd(path, timeout=0.2)
        self._job = guest.start_python("import os, time\n" + PORT_HELPERS + GUEST_END.format(name=name, seed=SEED))
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._end.shut()
        for thread in self._threads:
            thread.join()
        self._end.close()

    def _send(self):
        twice = BLOCK * 2
        while not self._stop.is_set():
            at = self.sent % len(BLOCK)
            try:
                self.sent += self._end.socket.send(twice[at : at + 65536])
            except TimeoutError:
                continue
            except OSError:
                return

    def _receive(self):
        twice = BLOCK * 2
        with contextlib.suppress(OSError):
            while True:
                try:
                    data = self._end.socket.recv(1 << 17)
                except TimeoutError:
                    continue
                if not data:
                    return
                at = self.got % len(BLOCK)
                if self.wrong is None and data != twice[at : at + len(data)]:
                    self.wrong = self.got
                self.got += len(data)

    def wait_for_progress(self, size=100_000, seconds=60):
        """Wait until so many more bytes have gone each way."""
        sent, got = self.sent, self.got
        wait_until(
            lambda: self._job.status is not None or (self.sent >= sent + size and self.got >= got + size), seconds,
            complaint=f"the streams stand still at {sent} sent and {got} received",
        )  # fmt: skip
        assert self._job.status is None, f"the guest's end has ended: {self._job.output!r}"

    def finish(self):
        """End both streams; return the guest's findings and compare the counts."""
        self._stop.set()
        self._threads[0].join()
        self._guest.write_file("/tmp/stop.new", str(self.sent).encode())
        self._guest.check("mv /tmp/stop.new /tmp/stop")
        result = self._job.wait(120)
        assert result.status == 0, result.text
        found = json.loads(result.text.splitlines()[-1])
        wait_until(lambda: self.got >= found["sent"], complaint=f"{self.got} of {found['sent']} bytes came")
        with contextlib.suppress(OSError):
            self._end.socket.shutdown(socket.SHUT_RDWR)
        assert (self.wrong, found["wrong"]) == (None, None), f"{self.got} and {found['got']} bytes came"
        assert (self.got, found["got"]) == (found["sent"], self.sent)
        return found
