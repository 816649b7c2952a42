"""NATS servers for tests: Debian's nats-server, one or a cluster, with the fleet's file that leads there."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support.places import ENVIRONMENT
from support.waiting import wait_until

from virtserial.rig.cache import RigUnavailable
from virtserial.rig.programs import programs

if TYPE_CHECKING:
    from pathlib import Path


def nats_server():
    """The words that start a server; skips where it cannot be had (in CI that is a failure)."""
    try:
        return programs("nats-server").command("nats-server")
    except RigUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Server:
    """A server; it may be killed, frozen and started again at the same place."""

    def __init__(self, folder: Path, name: str, configuration: str, port: int, max_memory: str) -> None:
        self.folder, self.name, self.port = folder, name, port
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.conf").write_text(
            f'server_name: {name}\nlisten: "127.0.0.1:{port}"\n'
            f'jetstream {{ store_dir: "{folder}/{name}", max_mem: {max_memory}, max_file: 8GB }}\n{configuration}'
        )
        self.process = None
        self.start()

    def start(self):
        with open(self.folder / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                [*nats_server(), "-c", str(self.folder / f"{self.name}.conf")], stdout=log, stderr=log
            )
        wait_until(self._listens, 20)

    def _listens(self):
        assert self.process.poll() is None, self.log
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    @property
    def log(self):
        return (self.folder / f"{self.name}.log").read_text()[-3000:]

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def heal(self):
        """Serve again, whatever was done to it."""
        if self.process.poll() is None:
            self.thaw()
        else:
            self.start()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def joined_cluster(folder: Path, vm: str):
    """Three brokers, and an agent of host h1, where a VM is: the brokers, and the environment of who comes to them."""
    broker = Broker(folder / "broker", servers=3)
    environment = {**ENVIRONMENT, "VIRTSERIAL_FLEET": str(broker.file())}
    command = [sys.executable, "-m", "virtserial", "fleet"]

    def fleet(*words):
        return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=60)

    agent = None
    try:
        # Servers that have just started may still choose their leader.
        wait_until(lambda: fleet("setup", "--replicas", "3", "--memory", "--size", "64").returncode == 0, 60, step=1)
        agent = subprocess.Popen([*command, "join", "--host", "h1"], env=environment)
        wait_until(lambda: f"h1/{vm}" in fleet("ls").stdout, 60, step=0.5)
        yield broker, environment
    finally:
        if agent is not None:
            agent.terminate()
            agent.wait(60)
        broker.stop()


class Broker:
    """One server, or a cluster of them.

    Args:
        folder: for everything.
        servers: how many.
        accounts: more of each server's configuration: accounts and users.
        scheme: of the addresses.
        max_memory: of JetStream, in each server.
    """

    def __init__(
        self, folder: Path, servers: int = 1, accounts: str = "", scheme: str = "nats", max_memory: str = "512MB"
    ) -> None:
        self.folder = folder
        ports = [free_port() for _ in range(servers)]
        routes = [free_port() for _ in range(servers)]
        self.servers = []
        for number, (port, route) in enumerate(zip(ports, routes, strict=True)):
            others = ", ".join(f'"nats://127.0.0.1:{other}"' for other in routes if other != route)
            cluster = f'cluster {{ name: c, listen: "127.0.0.1:{route}", routes: [{others}] }}\n' if others else ""
            self.servers.append(Server(folder, f"n{number}", cluster + accounts, port, max_memory))
        self.addresses = [f"{scheme}://127.0.0.1:{port}" for port in ports]

    def file(self, name: str = "fleet", **keys: str) -> Path:
        """Write the fleet's file."""
        path = self.folder / f"{name}.toml"
        addresses = ", ".join(f'"{each}"' for each in self.addresses)
        lines = [f"servers = [{addresses}]", *(f'{key} = "{value}"' for key, value in keys.items())]
        path.write_text("\n".join(lines))
        path.chmod(0o600)
        return path

    def stop(self):
        for server in self.servers:
            server.kill()
