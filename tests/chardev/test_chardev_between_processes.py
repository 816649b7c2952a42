"""A Connection as it travels: opened by one process, moved by another that is killed, and by its successor."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from virtserial.channel.codec import encode
from virtserial.chardev.socket_address import UnixAddress
from virtserial.chardev.socket_server import SocketServerChardev

WORKER = """
import json, os, socket, sys
from virtserial.channel.codec import decode
from virtserial.channel.connections import CONNECTION
from virtserial.host_end.factory import open_host_end
from virtserial.loop import EventLoop
channel = socket.socket(fileno=int(sys.argv[1]))
message, fds, _, _ = socket.recv_fds(channel, 4096, 4)
connection = decode(CONNECTION, json.loads(message))
loop = EventLoop()
class Echo:
    def host_opened(self): channel.send(b"opened")
    def host_closed(self): channel.send(b"closed"); os._exit(0)
    def host_writable(self): pass
    def host_readable(self):
        buffer = bytearray(4096)
        while count := end.readv([memoryview(buffer)]):
            end.writev([memoryview(buffer)[:count]])
end = open_host_end(connection, fds, loop)
end.listener, end.wants_input = Echo(), True
end.start()
loop.run()
"""


@pytest.fixture
def worker():
    with contextlib.ExitStack() as stack:

        def start(connection, fds):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.settimeout(60)
            stack.enter_context(ours)
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            theirs.close()
            socket.send_fds(ours, [json.dumps(encode(connection)).encode()], fds)
            assert ours.recv(100) == b"opened"
            return process, ours

        yield start


def test_client_does_not_notice_that_the_worker_was_killed(house, worker, tmp_path):
    path = str(tmp_path / "s")
    chardev = house.open(SocketServerChardev("foo", UnixAddress(path), wait=False))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(path)
        house.until(lambda: house.connections)
        connection = house.connections[0]
        first, _ = worker(*connection)
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        first.send_signal(signal.SIGKILL)
        first.wait()
        client.sendall(b"two")
        _, channel = worker(*connection)
        assert client.recv(100) == b"two"
        client.shutdown(socket.SHUT_WR)
        assert channel.recv(100) == b"closed"
        assert chardev.connected
        for fd in connection[1]:
            os.close(fd)
        house.connections.clear()
        chardev.connection_ended()
        assert client.recv(100) == b""
    assert not chardev.connected
