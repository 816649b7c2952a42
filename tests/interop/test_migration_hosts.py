"""A guest that moves on one machine takes the connections of its hosts along (--take-hosts-from)."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess

import pytest
from support.fetched import fetch_or_skip
from support.guests.host_end import HostEnd
from support.guests.moved_guest import MovedGuest, Traffic
from support.waiting import wait_until

from virtserial.rig.programs import programs

ROUNDS = int(os.environ.get("VIRTSERIAL_MIGRATIONS", "10")) // 5
"""Migrations in a row."""
PORTS = {f"org.test.{number}": f"/dev/virtio-ports/org.test.{number}" for number in (1, 2, 3)}
ECHO = """
import os, threading
def echo(fd):
    while True:
        data = os.read(fd, 100)
        if data:
            os.write(fd, data)
threading.Thread(target=echo, args=(os.open('/dev/virtio-ports/org.test.echo', os.O_RDWR),), daemon=True).start()
"""
FULL = """
import hashlib, os, threading
BLOB = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(30000))
full = open('/dev/virtio-ports/org.test.full', 'wb', 0)
def fill(rest):
    while rest:
        rest = rest[full.write(rest):]
threading.Thread(target=fill, args=(memoryview(BLOB),), daemon=True).start()
"""
BLOB = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(30000))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def words(places, **options):
    """A controller whose ports have the same places wherever the guest is; `options` are more of a chardev's."""
    made = ["-device", "virtio-serial-pci,id=ser0,max_ports=8"]
    for number, (name, place) in enumerate(places.items(), 1):
        where = f"host=127.0.0.1,port={place}" if isinstance(place, int) else f"path={place}"
        more = options.get(f"chr{number}", "")
        made += ["-chardev", f"socket,id=chr{number},{where},server=on,wait=off{more}"]
        made += ["-device", f"virtserialport,nr={number},chardev=chr{number},name={name},bus=ser0.0"]
    return made


@pytest.mark.slow
def test_socat_and_a_tcp_client_stay_connected(folder):
    socat = fetch_or_skip(programs, "socat").command("socat")
    places = {name: folder / name for name in (*PORTS, "org.test.echo", "org.test.full")}
    places["org.test.2"] = free_port()
    shared = f",clients=2,watch={folder}/watch"
    with MovedGuest(words(places, chr3=shared)) as guest:
        traffic = Traffic(guest, PORTS, places=places)
        guest.session()(ECHO)
        # Its host reads nothing: the port is throttled, in the middle of a chain.
        full = HostEnd(str(places["org.test.full"]))
        guest.session()(FULL)
        traffic.check()
        ends = traffic.session("dict(ends)")
        command = [*socat, "-", f"UNIX-CONNECT:{places['org.test.echo']}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            for number in range(ROUNDS):
                said = b"before %d\n" % number
                process.stdin.write(said)
                process.stdin.flush()
                guest.migrate(take_hosts=True)
                print("round", number, round(guest.blackout * 1000), "ms")
                assert "cannot" not in guest.vm.said()
                assert process.stdout.readline() == said
                traffic.check()
            process.stdin.close()
            assert process.wait(60) == 0
        assert full.receive(len(BLOB)) == BLOB
        full.close()
        # Nobody has seen an end, and nobody has connected again.
        assert traffic.session("dict(ends)") == ends
        end = HostEnd(str(places["org.test.echo"]))
        end.send(b"the path has come along")
        assert end.receive_until(b"the path has come along")
        end.close()
        received = {stream.name: stream.received for stream in traffic.streams}
        wait_until(lambda: all(stream.received > received[stream.name] for stream in traffic.streams))
        traffic.close()


def test_hosts_stay_where_a_guest_stays(folder):
    """A destination that cannot load takes nothing; with no one to take from, it opens sockets of its own."""
    places = {name: folder / name for name in PORTS}
    with MovedGuest(words(places)) as guest:
        traffic = Traffic(guest, PORTS, places=places)
        traffic.check()
        ends = traffic.session("dict(ends)")
        before = guest.words
        guest.words = [*before, "-device", "virtserialport,nr=7,name=more,bus=ser0.0"]
        target = guest.new_vm("-incoming", f"unix:{guest.folder}/m", take_hosts_from=guest.vm)
        guest.vm.qmp("migrate", uri=f"unix:{guest.folder}/m")
        assert target.process.wait(30) == 1
        guest.vm.migration()
        guest.vm.qmp("cont")
        traffic.check()
        assert traffic.session("dict(ends)") == ends
        guest.words = before
        guest.migrate(take_hosts=True)
        traffic.check()
        assert traffic.session("dict(ends)") == ends
        traffic.close()
