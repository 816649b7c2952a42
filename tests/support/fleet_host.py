"""A host of a fleet: a device process, the user-space driver that shows the guest's ports as sockets, and the agent."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import sys
from unittest import mock

from nats.errors import Error
from support import client_machine
from support.places import ENVIRONMENT
from support.waiting import wait_until

from virtserial.cli.main import main
from virtserial.client import HostStream, Monitor
from virtserial.errors import PeerError, VirtserialError
from virtserial.fleet.broker import connect, load_settings
from virtserial.fleet.directory import Directory
from virtserial.fleet.protocol import HOSTS, OWNERS, PORTS, STREAM
from virtserial.fleet.stream import FleetStream

BUCKETS = tuple(f"KV_{bucket}" for bucket in (HOSTS, PORTS, OWNERS))


class FleetHost:
    """Host NAME with the VM alpha.

    Args:
        folder: for everything.
        file: the fleet's file.
        setup: options of `fleet setup`; None: it is there already.
    """

    def __init__(self, folder, file, name="h1", setup=("--memory",)):
        self.folder, self.file, self.name = folder, file, name
        self.environment = {
            **ENVIRONMENT, "VIRTSERIAL_FLEET": str(file), "VIRTSERIAL_REGISTRY": str(folder / f"{name}.vms"),
        }  # fmt: skip
        self._setup = setup
        self._ending = contextlib.ExitStack()
        self.agents = []

    def __enter__(self):
        folder, name = self.folder, self.name
        enter = self._ending.enter_context
        try:
            enter(
                client_machine.running(
                    *("serve", "--allow-path", str(folder), "--name", "alpha"),
                    *("-device", f"virtio-serial,id=ser0,socket={folder}/{name}.device"),
                    *("-chardev", f"socket,id=c0,path={folder}/{name}.c0,server=on,wait=off"),
                    *("-device", "virtserialport,id=port0,chardev=c0,name=org.example.0"),
                    *("-chardev", f"socket,id=c1,path={folder}/{name}.c1,server=on,wait=off,clients=8"),
                    *("-device", "virtserialport,id=port1,chardev=c1,name=many"),
                    *("-chardev", f"pty,id=c2,path={folder}/{name}.pty"),
                    *("-device", "virtconsole,id=con0,chardev=c2"),
                    *("-qmp", f"unix:{folder}/{name}.qmp,server=on,wait=off"),
                    environment=self.environment,
                )
            )
            enter(
                client_machine.running(
                    "guest", "attach", f"{folder}/{name}.device", "--as", "socket", "--run-dir", f"{folder}/{name}.run"
                )
            )
            wait_until(lambda: (folder / f"{name}.run/virtio-ports/many").exists())
            if self._setup is not None:
                # Servers that have just started may still choose their leader.
                wait_until(lambda: self.run("fleet", "setup", "--size", "64", *self._setup)[::2] == (0, ""), 60, step=1)
        except BaseException:
            self._ending.close()
            raise
        return self

    def __exit__(self, *_):
        self._ending.close()

    def run(self, *words):
        """Run a command to its end in this process, which has its imports; return what support.programs.run does."""
        output, errors = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            try:
                status = main(words)
            finally:
                # Programs let a closed pipe end them.
                signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        return status, output.getvalue(), errors.getvalue()

    def join(self, *options, wait=True, name=None, file=None):
        """Start an agent, perhaps with another file for the fleet; it is in the fleet, and shows its ports."""
        options = [*options, "--monitor", f"alpha={self.folder}/{self.name}.qmp"]
        agent = subprocess.Popen(
            [sys.executable, "-m", "virtserial", "fleet", "join", "--host", name or self.name, *options],
            env={**self.environment, "VIRTSERIAL_FLEET": str(file or self.file)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._ending.callback(agent.stderr.close)
        self._ending.callback(agent.wait)
        self._ending.callback(agent.kill)
        self._ending.callback(self._end, agent)
        self.agents.append(agent)
        if wait:
            wait_until(lambda: len(self.ports()) == 3, 60, step=0.2)
        return agent

    def _end(self, agent):
        agent.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.wait(60)

    def listed(self):
        """The fleet's directory, as it is now."""
        return asyncio.run(self._directory())

    async def _directory(self):
        async with await connect(load_settings(str(self.file)), "test", print) as client:
            directory = Directory(client)
            await directory.load()
            return directory

    def lost(self):
        """The bytes that the host says are lost; None while it or the broker says nothing."""
        with contextlib.suppress(KeyError, VirtserialError):
            return self.listed().hosts()[self.name].lost
        return None

    def stream_leader(self):
        """The name of the server that leads the stream of output."""

        return asyncio.run(self._cluster(STREAM)).leader

    def is_led(self, servers):
        """Whether all that the fleet stores has a leader whom the other servers follow closely."""
        with contextlib.suppress(Error, TimeoutError, VirtserialError):
            clusters = [asyncio.run(self._cluster(name)) for name in (STREAM, *BUCKETS)]
            return all(
                each.leader and sum(one.current for one in each.replicas or ()) == servers - 1 for each in clusters
            )
        return False

    async def _cluster(self, stream):
        async with await connect(load_settings(str(self.file)), "test", print) as client:
            return (await client.jetstream().stream_info(stream)).cluster

    def ports(self):
        """The ports of alpha in the fleet, by name; none while the broker does not answer."""
        with contextlib.suppress(PeerError):
            vm = self.listed().vms().get((self.name, "alpha"))
            return {port.name: port for port in vm.ports} if vm is not None else {}
        return {}

    def stream(self, port, **options):
        """A port, over the fleet."""
        return FleetStream(load_settings(str(self.file)), f"{self.name}/alpha/{port}", **options)

    def guest(self, port):
        """The guest's end of a port."""
        stream = HostStream(f"unix:{self.folder}/{self.name}.run/virtio-ports/{port}")
        assert stream.wait_connected(60)
        return stream

    def clients(self, name):
        """Who has a port on the host itself, as its monitor knows."""
        with Monitor(f"{self.folder}/{self.name}.qmp") as monitor:
            return monitor.find_port(name).host_connected
