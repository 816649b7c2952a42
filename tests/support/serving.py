"""`virtserial serve` with monitors, and clients of them."""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

from support.places import ENVIRONMENT, REGISTRY

TIMEOUT = 60


@contextmanager
def serve(*options, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=(), registry=REGISTRY):
    """A `virtserial serve` that is ready; ended afterwards if it has not ended itself."""
    ready, ready_at_child = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "virtserial", "serve", "--allow-path", "/", *options,
             "--ready-fd", str(ready_at_child)],
            env={**ENVIRONMENT, "VIRTSERIAL_REGISTRY": str(registry)},
            stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, pass_fds=[ready_at_child, *pass_fds],
        )  # fmt: skip
    finally:
        os.close(ready_at_child)
    try:
        assert select.select([ready], [], [], TIMEOUT)[0], "it is not ready"
        yield process
    finally:
        os.close(ready)
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


class Client:
    """A connection to a monitor, in bytes."""

    def __init__(self, where):
        if isinstance(where, socket.socket):
            self.socket = where
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(where)
        self.socket.settimeout(TIMEOUT)
        self.received = b""

    def send(self, data, fds=()):
        if fds:
            sent = self.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            data = data[sent:]
        self.socket.sendall(data)

    def until(self, wanted):
        """Everything up to and with `wanted`."""
        while wanted not in self.received:
            data = self.socket.recv(65536)
            assert data, f"the end came before {wanted!r}: {self.received[-500:]!r}"
            self.received += data
        end = self.received.index(wanted) + len(wanted)
        piece, self.received = self.received[:end], self.received[end:]
        return piece

    def at_end(self):
        """Whether the connection comes to its end."""
        while data := self.socket.recv(65536):
            self.received += data
        return True

    def close(self):
        self.socket.close()


class QmpClient(Client):
    """A QMP client: calls, and the events that came meanwhile."""

    def __init__(self, where, capabilities=()):
        super().__init__(where)
        self.events = []
        self.greeting = self.message()
        self("qmp_capabilities", **({"enable": list(capabilities)} if capabilities else {}))

    def message(self):
        return json.loads(self.until(b"\r\n"))

    def ask(self, request, fds=()):
        """The answer to one request, as it is."""
        self.send(json.dumps(request).encode() + b"\n", fds)
        return self.answer()

    def answer(self):
        while "event" in (message := self.message()):
            self.events.append(message)
        return message

    def __call__(self, command, fds=(), **arguments):
        if command != "device_add":
            arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        answer = self.ask({"execute": command, "arguments": arguments}, fds)
        assert "return" in answer, answer
        return answer["return"]

    def error(self, command, **arguments):
        """(class, text) of the refusal of a command."""
        answer = self.ask({"execute": command, "arguments": arguments})
        assert "error" in answer, answer
        return answer["error"]["class"], answer["error"]["desc"]

    def event(self, name):
        """The next event of a name."""
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            message = self.message()
            assert "event" in message
            self.events.append(message)
