"""A pool of warm guests: starts one saved guest several times, and says when each one's agent answers.

    host$ warm_guests.py /srv/warm 10 -- -m 512 ... -chardev socket,id=agent,path=FOLDER/agent,server=on,wait=off ...

/srv/warm is what `migrate file:/srv/warm` wrote while the guest was stopped.  After "--" stand the words of the machine
that was saved; FOLDER in them becomes a folder of each guest's own, in which its agent's socket is named "agent".
The agent answers {"execute": "guest-ping"}, as qemu-guest-agent does; libvirt's name for its port is
org.qemu.guest_agent.0.  The pool lives until end of file on standard input.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from virtserial.client.qmp import QmpClient

PROGRAM = (sys.executable, "-m", "virtserial.cli.qemu")
AT_ONCE = os.cpu_count() or 1
"""Guests that load at the same time: a device that waits long for a processor does not answer QEMU in time."""


class WarmGuest:
    """One guest of the pool: stopped until `go`, where it was when it was saved."""

    def __init__(self, saved, words, program=PROGRAM):
        self.folder = Path(tempfile.mkdtemp(prefix="warm-"))
        self._monitor = None
        own = [word.replace("FOLDER", str(self.folder)) for word in words]
        monitor = f"unix:{self.folder}/qmp,server=on,wait=off"
        self._process = subprocess.Popen([*program, *own, "-incoming", f"file:{saved}", "-S", "-qmp", monitor])

    def wait_loaded(self):
        """Until the guest could go on."""
        while not (self.folder / "qmp").exists():
            if self._process.poll() is not None:
                raise SystemExit(f"a guest ended: status {self._process.returncode}")
            time.sleep(0.01)
        self._monitor = QmpClient(f"{self.folder}/qmp", answer_time=60)
        while self._monitor("query-status")["status"] == "inmigrate":
            time.sleep(0.01)

    def go(self):
        """Let the guest go on; return seconds until its agent has answered."""
        began = time.monotonic()
        self._monitor("cont")
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(30)
            agent.connect(f"{self.folder}/agent")
            agent.sendall(b'{"execute": "guest-ping"}\n')
            answer = agent.makefile().readline()
        if "return" not in json.loads(answer):
            raise SystemExit(f"the agent answered {answer!r}")
        return time.monotonic() - began

    def close(self):
        """End it; nothing of it is left."""
        if self._monitor is not None:
            self._monitor.close()
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def run_pool(saved, count, words, program=PROGRAM):
    with contextlib.ExitStack() as stack:
        pool = []
        for number in range(count):
            if number >= AT_ONCE:
                pool[number - AT_ONCE].wait_loaded()
            pool.append(guest := WarmGuest(saved, words, program))
            stack.callback(guest.close)
        for guest in pool[-AT_ONCE:]:
            guest.wait_loaded()
        for number, guest in enumerate(pool):
            print(f"guest {number}: answered after {guest.go():.3f} s ({guest.folder})", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    if len(sys.argv) < 5 or sys.argv[3] != "--":
        sys.exit(__doc__)
    saved, count, _, *words = sys.argv[1:]
    run_pool(saved, int(count), words)
