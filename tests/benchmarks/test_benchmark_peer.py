"""The peer's check: it is the proof that a benchmark moved the right bytes, so it must see a wrong one."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from contextlib import contextmanager, suppress

import pytest

from peer_program import peer_program
from virtserial.rig import RigUnavailable

CI = os.environ.get("CI") == "true"


@pytest.fixture(scope="module")
def program():
    try:
        return peer_program(may_install=CI)
    except RigUnavailable as reason:
        if CI:
            pytest.fail(str(reason))
        pytest.skip(str(reason))


def relay(source, target, change):
    """Passes a stream on through change(offset, data) until one of its ends is gone."""
    offset = 0
    with suppress(OSError):
        while data := source.recv(4096):
            target.sendall(change(offset, data))
            offset += len(data)
        target.shutdown(socket.SHUT_WR)


def start(program, endpoint):
    pipe = subprocess.PIPE
    return subprocess.Popen([program, endpoint], stdin=pipe, stdout=pipe, text=True, bufsize=1)


@contextmanager
def peers(program, folder, change):
    """A guest's and a host's peer, and what the guest sends goes through change."""
    processes, connections = [], []
    try:
        for name in ("guest", "host"):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"{folder}/{name}")
                listener.listen()
                processes.append(start(program, f"{folder}/{name}"))
                connections.append(listener.accept()[0])
            assert processes[-1].stdout.readline() == "open\n"
        guest, host = connections
        threads = [
            threading.Thread(target=relay, args=(guest, host, change)),
            threading.Thread(target=relay, args=(host, guest, lambda _, data: data)),
        ]
        for thread in threads:
            thread.start()
        yield processes
        for process in processes:
            process.stdin.close()
            process.wait(60)
        for thread in threads:
            thread.join()
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        for connection in connections:
            connection.close()


def converse(processes, guest_command, host_command):
    guest, host = processes
    guest.stdin.write(guest_command + "\n")
    assert guest.stdout.readline() == "ready\n"
    host.stdin.write(host_command + "\n")
    return host.stdout.readline().split()


def test_all_commands_with_an_honest_port(program, folder):
    with peers(program, folder, lambda _, data: data) as both:
        for guest, host, figures in (
            ("send 4096 1000000", "collect 262144 1000000", 1),
            ("take 4096 1000000", "feed 65536 1000000", 1),
            ("verify 65536 1000001", "feed 65536 1000001", 1),
            ("echo 64 200", "ping 64 200", 4),
            ("echo 1 1", "ping 1 1", 4),
        ):
            verdict, *words = converse(both, guest, host)
            assert verdict == "ok"
            assert len(words) == figures
            assert all(float(word) > 0 for word in words)


def flip(offset, data):
    """Changes the byte at offset 500,000."""
    place = 500_000 - offset
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] if 0 <= place < len(data) else data


def drop(offset, data):
    """Loses a byte at offset 500,000."""
    place = 500_000 - offset
    return data[:place] + data[place + 1 :] if 0 <= place < len(data) else data


def double(offset, data):
    """Says the 4096 bytes at 40,960 twice."""
    return data + data if 40_960 <= offset < 45_056 else data


@pytest.mark.parametrize("change", [flip, drop, double])
def test_a_wrong_byte_is_seen(program, folder, change):
    with peers(program, folder, change) as both:
        verdict, what, *_ = converse(both, "send 4096 1000000", "collect 262144 1000000")
        assert (verdict, what) == ("bad", "check")
        both[0].kill()  # its reader has gone


def test_both_ways_at_once_until_the_time_is_over(program, folder):
    with peers(program, folder, lambda _, data: data) as both:
        verdict, seconds, received, sent = converse(both, "shout 4096 0", "duplex 4096 200")
        assert verdict == "ok"
        assert float(seconds) >= 0.2
        assert int(received) > 4096
        assert int(sent) > 4096
        both[0].kill()  # it goes on until its host has left


def test_a_wrong_byte_is_seen_both_ways_at_once_too(program, folder):
    with peers(program, folder, drop) as both:
        verdict, what, *_ = converse(both, "shout 4096 0", "duplex 4096 60000")
        assert (verdict, what) == ("bad", "check")
        both[0].kill()
