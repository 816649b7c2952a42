"""A fleet of simulated hosts at a real broker: what broker, agent, `ls` and late readers need, from 10 to 1,000 hosts.

    python benchmarks/fleet.py [--hosts 10,100,1000] [--ports 30] [--json FILE]

Each host is a connection with an agent's own way to the broker (virtserial.fleet.outlet): its record and a VM's with
30 ports, heartbeats, output of 256 bytes a message, one message of a port under way at a time.  `ls` and the late
reader are fresh processes.  The last line is a real agent beside a real device with 30 published ports, idle.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from nats.errors import Error  # noqa: E402
from support.broker import Broker  # noqa: E402
from support.client_machine import running  # noqa: E402
from support.device_process import resident  # noqa: E402

from virtserial.fleet.broker import connect, load_settings, set_up  # noqa: E402
from virtserial.fleet.outlet import Outlet  # noqa: E402
from virtserial.fleet.protocol import (  # noqa: E402
    HEARTBEAT,
    HOSTS,
    PORTS,
    HostRecord,
    Place,
    PortRecord,
    VmRecord,
    write,
)

MESSAGE = bytes(range(256))
MESSAGES = 20
"""Of each port."""
UNDER_WAY = 1000
"""Messages of all hosts that wait for the broker at once: more, and one process is late with the heartbeats."""
KEPT = 128
IDLE = 10.0
LS = """
import asyncio, sys, time
from virtserial.fleet.broker import connect, load_settings
from virtserial.fleet.directory import Directory
async def main():
    async with await connect(load_settings(sys.argv[1]), "ls", print) as client:
        begun = time.monotonic()
        directory = Directory(client)
        await directory.load()
        print(time.monotonic() - begun, sum(len(vm.ports) for vm in directory.vms().values()))
asyncio.run(main())
"""
LATE = """
import asyncio, sys, time
from virtserial.fleet.broker import connect, load_settings
from virtserial.fleet.protocol import Place, STREAM
from virtserial.fleet.reader import Reader
async def main():
    async with await connect(load_settings(sys.argv[1]), "late", print) as client:
        begun = time.monotonic()
        reader = Reader(client, STREAM, Place(sys.argv[2], "vm", "port0").subject("out"), 1)
        count = 0
        while count < int(sys.argv[3]):
            await reader.next()
            count += 1
        print(time.monotonic() - begun)
asyncio.run(main())
"""


def cpu(pid):
    """Seconds of CPU that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def fresh(program, *words):
    """Run a program in a process of its own; return the numbers that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", program, *words]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return [float(word) for word in printed.split()]


class Host:
    def __init__(self, name, client, ports):
        self.name, self.client = name, client
        self.outlet = Outlet(client)
        self.places = [Place(name, "vm", f"port{number}") for number in range(ports)]

    async def announce(self):
        records = [
            PortRecord(place.port, "", [f"c{n}", str(n)], True, 1, 8, True, "") for n, place in enumerate(self.places)
        ]
        self.hosts = await self.client.jetstream().key_value(HOSTS)
        ports = await self.client.jetstream().key_value(PORTS)
        await self.beat()
        await ports.put(f"{self.name}.vm", write(VmRecord(self.outlet.agent, "root", records)))

    async def beat(self):
        await self.hosts.put(self.name, write(HostRecord(self.outlet.agent, self.name, time.time(), "0.1.0", 0, {})))

    async def beat_on(self):
        await asyncio.sleep(random.uniform(0, HEARTBEAT))
        while True:
            # One process stands for all hosts: when it is busy, an answer may be late.
            with contextlib.suppress(Error, TimeoutError):
                await self.beat()
            await asyncio.sleep(HEARTBEAT)

    async def publish(self, place, under_way):
        for number in range(MESSAGES):
            async with under_way:
                await self.outlet.store(place, MESSAGE, number * len(MESSAGE))


async def measure(file, server, count, ports):
    settings = load_settings(str(file))
    async with await connect(settings, "setup", print) as client:
        await set_up(client, kept=KEPT, size=2 << 30, memory=True)
    pid = server.process.pid
    begun = time.monotonic()
    hosts = []
    for start in range(0, count, 50):
        clients = await asyncio.gather(
            *(connect(settings, f"h{n}", print, 60) for n in range(start, min(start + 50, count)))
        )
        hosts += [Host(f"h{start + n}", client, ports) for n, client in enumerate(clients)]
        await asyncio.gather(*(host.announce() for host in hosts[start:]))
    joined = time.monotonic() - begun
    beats = [asyncio.create_task(host.beat_on()) for host in hosts]
    begun, used = time.monotonic(), cpu(pid)
    await asyncio.sleep(IDLE)
    idle = (cpu(pid) - used) / (time.monotonic() - begun)
    under_way = asyncio.Semaphore(UNDER_WAY)
    begun, used, own = time.monotonic(), cpu(pid), time.process_time()
    await asyncio.gather(*(host.publish(place, under_way) for host in hosts for place in host.places))
    spent = time.monotonic() - begun
    total = count * ports * MESSAGES
    result = {
        "hosts": count, "ports": count * ports, "join s": joined, "broker idle CPU": idle,
        "messages/s": total / spent, "broker CPU us/message": (cpu(pid) - used) / total * 1e6,
        "agents' CPU us/message": (time.process_time() - own) / total * 1e6,
        "broker MiB": resident(pid) / (1 << 20),
    }  # fmt: skip
    seconds, listed = await asyncio.to_thread(fresh, LS, str(file))
    assert listed == count * ports, listed
    late = [
        (await asyncio.to_thread(fresh, LATE, str(file), f"h{random.randrange(count)}", str(MESSAGES)))[0]
        for _ in range(3)
    ]
    result |= {"ls s": seconds, "late reader ms": sorted(late)[1] * 1000}
    for beat in beats:
        beat.cancel()
    await asyncio.gather(*(host.client.close() for host in hosts))
    return result


def real_agent(folder, file, ports):
    """MiB and share of a CPU of a real agent with a real device, idle."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "VIRTSERIAL_FLEET": str(file),
                   "VIRTSERIAL_REGISTRY": str(folder / "vms")}  # fmt: skip
    options = []
    for number in range(ports):
        options += ["-chardev", f"socket,id=c{number},path={folder}/c{number},server=on,wait=off,clients=4"]
        options += ["-device", f"virtserialport,chardev=c{number},name=p{number}"]
    with running(
        "serve", "--name", "vm", "-device", f"virtio-serial,id=s,socket={folder}/s", *options, environment=environment
    ):
        agent = subprocess.Popen(
            [sys.executable, "-m", "virtserial", "fleet", "join", "--host", "real", "--publish", "*"], env=environment
        )
        try:
            time.sleep(8)
            used = cpu(agent.pid)
            time.sleep(IDLE)
            return {"agent MiB": resident(agent.pid) / (1 << 20), "agent idle CPU": (cpu(agent.pid) - used) / IDLE}
        finally:
            agent.terminate()
            agent.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", default="10,100,1000")
    parser.add_argument("--ports", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for count in map(int, options.hosts.split(",")):
        with tempfile.TemporaryDirectory(prefix="fleet") as name:
            broker = Broker(Path(name) / "broker", max_memory="4GB")
            try:
                results.append(asyncio.run(measure(broker.file(), broker.servers[0], count, options.ports)))
            finally:
                broker.stop()
        print(
            "  ".join(
                f"{key} {value:,.3g}" if value < 100 else f"{key} {value:,.0f}" for key, value in results[-1].items()
            ),
            flush=True,
        )
    with tempfile.TemporaryDirectory(prefix="fleet") as name:
        broker = Broker(Path(name) / "broker")
        try:
            file = broker.file()
            asyncio.run(_set_up(file))
            results.append(real_agent(Path(name), file, options.ports))
        finally:
            broker.stop()
    print("  ".join(f"{key} {value:.3g}" for key, value in results[-1].items()))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


async def _set_up(file):
    async with await connect(load_settings(str(file)), "setup", print) as client:
        await set_up(client, memory=True, size=64 << 20)


if __name__ == "__main__":
    main()
