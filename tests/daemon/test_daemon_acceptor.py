"""Taking clients where no descriptor is left."""

from __future__ import annotations

import errno
import os
import socket

from virtserial.daemon.keeper.acceptor import Acceptor
from virtserial.loop import EventLoop


class OutOfDescriptors(socket.socket):
    """Fails to accept at first."""

    tries = 0

    def accept(self):
        self.tries += 1
        if self.tries == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_without_descriptors_the_loop_rests_and_the_client_is_taken_later(tmp_path):
    loop, taken = EventLoop(), []
    with OutOfDescriptors(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        acceptor = Acceptor(loop, listener, "it", taken.append)
        client.connect(str(tmp_path / "s"))
        loop.run_once(timeout=0)
        loop.run_once(timeout=0.01)
        assert listener.tries == 1
        while not taken:
            loop.run_once(timeout=60)
        assert listener.tries == 2
        acceptor.unwatch()
        taken[0].close()
    loop.close()


def test_a_client_that_cannot_be_served_is_sent_away(tmp_path):
    """Where no descriptor is left not even a module can be imported."""

    def fail(_client):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    loop = EventLoop()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        acceptor = Acceptor(loop, listener, "it", fail)
        client.connect(str(tmp_path / "s"))
        loop.run_once(timeout=60)
        assert client.recv(1) == b""
        acceptor.unwatch()
    loop.close()
