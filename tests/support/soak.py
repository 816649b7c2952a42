"""Soak: 30 ports, hosts that come and go, ports that are plugged and unplugged, processes that are replaced and killed.

    PYTHONPATH=src:tests python3 -m support.soak MINUTES [--kills]

Afterwards every port moves bytes exactly, and descriptors and anonymous memory are what they were when it was warm.
With --kills workers are killed, and both processes replaced as well; then their memory is that of younger ones.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path

from support.device_process import DeviceProcess, connect, port_options
from support.embedded_guest import EmbeddedGuest, try_receive, try_send
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient

PORTS = 30
WARM_UP = 45.0
GROWTH = 1 << 20
"""Bytes of anonymous memory that may come on top: what the allocator has not given back."""


def anonymous(pid):
    """Bytes of a process that no file backs."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) << 10


class Soak:
    """A device with its guest and its monitor, and what is done to them."""

    def __init__(self, folder, seed, kills):
        self.rng = random.Random(seed)
        self.folder = folder
        options = ["-device", f"virtio-serial,id=ser0,socket={folder}/ser0.sock,max_ports=31"]
        for number in range(1, PORTS + 1):
            options += port_options(folder, f"p{number}", number)
            options[-1] += f",id=p{number}"
        self.device = DeviceProcess(folder, *options, "-qmp", f"unix:{folder}/qmp,server=on,wait=off")
        self.guest = EmbeddedGuest(folder / "ser0.sock", *(f"p{number}" for number in range(1, PORTS + 1)))
        self.monitor = QmpClient(f"{folder}/qmp", 30)
        self.storms = [self.transfer, self.visits, self.flood, self.plug]
        if kills:
            self.storms += [self.kill, self.restart]
        self.done = dict.fromkeys((storm.__name__ for storm in self.storms), 0)

    def any_port(self):
        return f"p{self.rng.randint(1, PORTS)}"

    def transfer(self):
        """Bytes both ways, compared."""
        name = self.any_port()
        self.guest.check_port(name, self.folder / name, self.rng.randint(1, 200_000))

    def visits(self):
        """Hosts that come and go at once."""
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):  # as many wait already as may
                connect(self.folder / self.any_port()).close()
            self.guest.loop.run_once(timeout=0.001)
        self.wait_until_alone()

    def wait_until_alone(self):
        """Until the last visitor has come and gone: what the guest writes to one that has left is discarded."""
        since = time.monotonic()

        def alone():
            nonlocal since
            if any(port.host_connected for port in self.guest.driver.ports.values()):
                since = time.monotonic()
            return time.monotonic() > since + 0.5

        self.guest.run_until(alone, 60)

    def flood(self):
        """A host that sends to a port that nobody has open, and one that does not read; both leave in the middle."""
        name = self.any_port()
        received = self.guest.open(name)
        with self.guest.connect(self.folder / name) as host, self.guest.connect(self.folder / f"p{PORTS}") as other:
            for end in (host, other):
                end.setblocking(False)
                try_send(end, bytes(1 << 20))
            for _ in range(20):
                received.port.write(bytes(50_000))
                self.guest.loop.run_once(timeout=0.001)
            try_receive(host)
        received.port.close()
        self.wait_until_alone()

    def plug(self):
        """A port goes, and one of its number comes."""
        number = self.rng.randint(1, PORTS)
        name = f"p{number}"
        port = self.guest.port(name)
        self.monitor.execute("device_del", {"id": name})
        self.guest.run_until(lambda: port not in self.guest.driver.ports.values())
        self.monitor.execute(
            "device_add",
            {"driver": "virtserialport", "id": name, "bus": "ser0.0", "nr": number, "chardev": name, "name": name},
        )
        self.guest.run_until(lambda: name in {port.name for port in self.guest.driver.ports.values()})

    def kill(self):
        """The worker is killed."""
        self.device.wait_for_new_worker(self.device.kill_worker())

    def restart(self):
        """The worker is replaced, or both processes are."""
        if not self.monitor.execute("x-virtserial-query")["changing"]:
            self.monitor.execute("x-virtserial-restart", {"keeper": self.rng.random() < 0.5})

    def run(self, seconds):
        """Storms, one after the other."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            storm = self.rng.choice(self.storms)
            storm()
            self.done[storm.__name__] += 1

    def settled(self):
        """(descriptors of keeper and worker), (anonymous bytes of keeper and worker) when nobody is connected."""
        wait_until(lambda: not self.monitor.execute("x-virtserial-query")["changing"], 30)
        self.wait_until_alone()
        # Every chain of every transmitq has come back to the driver.
        self.guest.run_until(lambda: all(port.flushed() for port in self.guest.driver.ports.values()), 30)
        descriptors = self.device.settled_descriptors()
        return descriptors, (anonymous(self.device.pid), anonymous(self.device.worker))

    def close(self):
        self.monitor.__exit__(None, None, None)
        self.guest.close()
        self.device.kill()


def main(minutes, kills):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vs-") as folder:
        soak = Soak(Path(folder), seed, kills)
        try:
            soak.run(min(WARM_UP, minutes * 30))
            before = soak.settled()
            print(f"warm: descriptors {before[0]}, anonymous bytes {before[1]}, {soak.done}", flush=True)
            soak.run(minutes * 60)
            after = soak.settled()
            print(f"end:  descriptors {after[0]}, anonymous bytes {after[1]}, {soak.done}", flush=True)
            for number in range(1, PORTS + 1):
                soak.guest.check_port(f"p{number}", soak.folder / f"p{number}", 20_000)
            assert after[0] == before[0], "descriptors are left open"
            if not kills:
                growth = max(end - start for end, start in zip(after[1], before[1], strict=True))
                assert growth <= GROWTH, f"anonymous memory has grown by {growth} bytes"
            assert "internal error" not in soak.device.log, soak.device.log
        except BaseException:
            print(soak.device.log[-3000:])
            raise
        finally:
            soak.close()
    print("flat")


if __name__ == "__main__":
    main(float(sys.argv[1]), "--kills" in sys.argv)
