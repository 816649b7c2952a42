"""A healthy guest beside an attack, in a process of its own: how long did its longest round trip take?

`python3 -m support.neighbour CONTROLLER PORT HOST` says "ready", makes round trips between the guest's port and its
host's socket until its standard input ends, and prints the seconds of the longest one.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

from support.device_process import connect
from support.embedded_guest import EmbeddedGuest, try_receive
from support.places import ENVIRONMENT, ROOT

WITH_TESTS = {**ENVIRONMENT, "PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}{os.pathsep}{ROOT / 'tests'}"}
LIMIT = 60
"""Seconds for one round trip: no attack holds a neighbour up for so long, a stopped device does."""


class Neighbour:
    """The process.

    Args:
        controller: the socket of its device.
        port: the name of its port.
        host: the socket of the port's host end.
    """

    def __init__(self, controller, port, host):
        words = [sys.executable, "-m", "support.neighbour", str(controller), port, str(host)]
        self._process = subprocess.Popen(
            words, env=WITH_TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def longest(self):
        """End it and return the seconds of its longest round trip."""
        output, _ = self._process.communicate("", timeout=2 * LIMIT)
        return float(output)


def main(controller, port, host):
    longest = 0.0
    with EmbeddedGuest(controller, port) as guest, connect(host) as end:
        received = guest.open(port)
        guest.run_until(lambda: received.port.host_connected)
        end.setblocking(False)
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0.001)[0]:
            before = time.monotonic()
            received.data.clear()
            received.port.write(b"x")
            guest.run_until(lambda: try_receive(end), LIMIT)
            end.send(b"y")
            guest.run_until(lambda: received.data, LIMIT)
            longest = max(longest, time.monotonic() - before)
    print(longest)


if __name__ == "__main__":
    main(*sys.argv[1:])
