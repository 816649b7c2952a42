"""Forms of QEMU's words with a real QEMU: memory, JSON, places of devices, files of options, descriptors."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
from support.guests.dropin_guest import (
    PROGRAM,
    QUIET,
    DropinGuest,
    device_processes,
    environment,
    wait_until_nothing_is_left,
)
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.rig.qemu import find_qemu

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def folder(folder):
    yield folder
    wait_until_nothing_is_left(folder)


def ask(command, environment, words, *questions):
    """What a machine that is stopped at its start answers to QMP commands."""
    ours, theirs = socket.socketpair()
    line = ["-chardev", f"socket,id=q,fd={theirs.fileno()}", "-mon", "chardev=q,mode=control"]
    with subprocess.Popen(
        [*command, *QUIET, "-nodefaults", "-S", *words, *line], env=environment, pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        theirs.close()
        try:
            monitor = QmpClient(ours, 60)
            answers = [monitor(question) for question in questions]
            monitor("quit")
            monitor.close()
        except BaseException as error:
            process.kill()
            error.add_note(process.stderr.read().decode())
            raise
        finally:
            ours.close()
    return answers


MEMORY = [
    "",
    "-m 96",
    "-m 1.3M",
    "-m size=64M,slots=2,maxmem=1G -object memory-backend-ram,id=d,size=64M -device pc-dimm,id=dimm,memdev=d",
    "-machine q35,memory.size=50331648",
    "-machine q35,memory-backend=x -object memory-backend-ram,id=x,size=64M",
    "-M memory-backend=x -m 64M "
    """-object '{"qom-type":"memory-backend-file","id":"x","size":67108864,"mem-path":"/tmp"}'""",
    "-m 128 -numa node,memdev=a -numa node,memdev=b -object memory-backend-ram,id=a,size=64M "
    "-object memory-backend-shm,id=b,size=64M",
    "-m 64 -mem-path /tmp -mem-prealloc",
    "-machine microvm,pcie=on -m 64",
]


@pytest.mark.parametrize("words", MEMORY)
def test_memory_is_of_the_size_qemu_gives_and_shared(words, folder):
    words = shlex.split(words)
    program = find_qemu()
    (expected,) = ask(program.command, {**os.environ, **program.environment}, words, "query-memory-size-summary")
    device = ["-device", "virtio-serial", "-name", folder]
    summary, backends = ask(
        PROGRAM, environment(folder), [*words, *device], "query-memory-size-summary", "query-memdev"
    )
    assert summary == expected
    assert backends
    assert all(backend["share"] for backend in backends)


def test_devices_keep_their_places_and_options_in_json_work(folder):
    """Controllers as JSON and as key=value, functions of one slot, behind a root port; names as libvirt gives them."""
    port = {"driver": "virtserialport", "bus": "a.0", "nr": 3, "chardev": "c", "id": "channel0", "name": "org.json"}
    words = [
        *shlex.split("-machine q35 -m 256 -device pcie-root-port,id=rp,slot=1,chassis=1,addr=0x4"),
        *("-device", json.dumps({"driver": "virtio-serial-pci", "id": "a", "bus": "rp", "addr": "0x0"})),
        *("-device", "virtio-serial,id=f0,addr=0x7.0x0,multifunction=on"),
        *("-device", "virtio-serial,id=f1,addr=0x7.0x1"),
        *("-chardev", f"socket,id=c,path={folder}/c,server=on,wait=off"),
        *("-device", json.dumps(port)),
    ]
    with DropinGuest(words) as guest:
        places = guest.check("for d in /sys/bus/pci/devices/*; do echo ${d##*/} $(cat $d/vendor $d/device); done")
        ours = [(line.split()[0], line.split()[2]) for line in places.splitlines() if line.split()[1] == "0x1af4"]
        # Transitional on the root bus, modern only behind a port, as QEMU's own.
        assert ours == [("0000:00:07.0", "0x1003"), ("0000:00:07.1", "0x1003"), ("0000:01:00.0", "0x1043")]
        assert guest.check("cat /sys/class/virtio-ports/*p3/name") == "org.json"
        listed = {entry["name"] for entry in guest.qmp("qom-list", path="/machine/peripheral")}
        assert {"a", "f0", "f1", "rp", "channel0"} <= listed


CONFIG = """
[machine]
  type = "q35"
[memory]
  size = "256"
[device "a"]
  driver = "virtio-serial-pci"
  max_ports = "4"
[chardev "c"]
  backend = "socket"
  fd = "{fd}"
[device "p"]
  driver = "virtserialport"
  chardev = "c"
  name = "org.fd"
[device "net"]
  driver = "virtio-net-pci"
"""


def test_options_from_a_file_inherited_sockets_and_descriptor_sets(folder):
    """What libvirt and Proxmox hand over: -readconfig, fd=, -add-fd with /dev/fdset/N for a file and for a log."""
    ours, theirs = socket.socketpair()
    with open(f"{folder}/out", "wb") as out, open(f"{folder}/log", "wb") as log, theirs:
        Path(folder, "vm.cfg").write_text(CONFIG.format(fd=theirs.fileno()))
        words = shlex.split(
            f"-readconfig {folder}/vm.cfg -nodefaults -add-fd fd={out.fileno()},set=1 "
            f"-add-fd fd={log.fileno()},set=2,opaque=log -chardev file,id=f,path=/dev/fdset/1,append=on "
            "-device virtserialport,chardev=f,name=org.file "
            "-chardev null,id=n,logfile=/dev/fdset/2,logappend=on -device virtconsole,chardev=n"
        )
        descriptors = [theirs.fileno(), out.fileno(), log.fileno()]
        guest = DropinGuest(words, pass_fds=descriptors)
        with guest:
            theirs.close()
            guest.check("echo to the file > /dev/virtio-ports/org.file")
            wait_until(lambda: Path(folder, "out").read_text() == "to the file\n")
            guest.check("stty -F /dev/hvc0 raw; echo to the log > /dev/hvc0")
            wait_until(lambda: Path(folder, "log").read_text() == "to the log\n")
            job = guest.start("exec 3<>/dev/virtio-ports/org.fd; head -n 1 <&3; echo back >&3; cat <&3 >/dev/null")
            ours.settimeout(60)
            ours.sendall(b"through a socket\n")
            assert ours.recv(100) == b"back\n"
            ours.close()
            assert job.wait(60).text == "through a socket\n"
            sets = {entry["fdset-id"]: entry for entry in guest.qmp("query-fdsets")}
            assert {1, 2} <= sets.keys()
            assert guest.check("cat /sys/bus/pci/devices/*/device | grep -c 0x1003") == "1"
            assert "slower path" not in guest.stderr


def test_data_flows_through_memory_that_is_mapped_in_two_numa_nodes(folder):
    words = shlex.split(
        "-machine q35 -m 256 -smp 2 -numa node,cpus=0,memdev=a -numa node,cpus=1,memdev=b "
        "-object memory-backend-ram,id=a,size=128M -object memory-backend-file,id=b,size=128M,mem-path=/dev/shm "
        f"-device virtio-serial -chardev file,id=f,path={folder}/out -device virtserialport,chardev=f,name=org.numa"
    )
    with DropinGuest(words) as guest:
        guest.check("head -c 4000000 /dev/zero | tr '\\0' 'x' > /dev/virtio-ports/org.numa", timeout=120)
        wait_until(lambda: Path(folder, "out").stat().st_size == 4000000)
        assert set(Path(folder, "out").read_bytes()) == {ord("x")}
        worker = max(device_processes(folder))
        mapped = Path(f"/proc/{worker}/maps").read_text()
        assert len({line.split()[4] for line in mapped.splitlines() if "memory-backend-memfd" in line}) == 2
        assert "slower path" not in guest.stderr
