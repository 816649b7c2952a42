"""OpenSSH over a port: the real ssh, scp and rsync to the real sshd in a guest that has no network."""

from __future__ import annotations

import hashlib
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from support.broker import joined_cluster
from support.guests.ssh_machine import LIMIT, MEGABYTES, PREPARE, SshMachine, guest_files, serving
from support.places import ENVIRONMENT, REGISTRY
from support.waiting import wait_until

from virtserial.client.names import find_vm_port
from virtserial.guest.sshd import PORT
from virtserial.rig import Guest


@pytest.fixture(scope="module", autouse=True)
def ssh_on_the_host():
    if not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        pytest.skip("no OpenSSH client on this host")


@pytest.fixture(scope="module")
def machine(our_device, module_folder):
    options = ["-device", "virtio-serial", "-chardev", f"socket,id=ssh,path={module_folder}/ssh,server=on,wait=off"]
    options += ["-device", f"virtserialport,chardev=ssh,name={PORT}"]
    options += ["-chardev", f"socket,id=app,path={module_folder}/app,server=on,wait=off"]
    options += ["-device", "virtserialport,chardev=app,name=org.test.app"]
    options += ["-qmp", f"unix:{module_folder}/qmp,server=on,wait=off"]
    with (
        our_device.attach(options) as attached,
        Guest(attached.arguments, files=guest_files(module_folder), memory_mib=512 + 2 * MEGABYTES) as guest,
    ):
        guest.check(PREPARE)
        yield SshMachine(guest, f"{attached.process.pid}", module_folder, attached.process)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setenv("VIRTSERIAL_REGISTRY", REGISTRY)


def test_dropbear_serves_where_there_is_no_sshd(machine):
    machine.guest.check("mkdir -p /etc/dropbear; mv $(command -v sshd) /root/sshd.away")
    try:
        with serving(machine.guest):
            done = machine.ssh("-o", "UserKnownHostsFile=/dev/null", "-o", "ControlPath=none", "echo served")
            assert (done.returncode, done.stdout) == (0, "served\n"), done.stderr
            wait_until(lambda: not find_vm_port(f"{machine.name}/{PORT}").clients)
    finally:
        machine.guest.check("mv /root/sshd.away /usr/sbin/sshd")


@pytest.fixture(scope="module")
def served(machine):
    with serving(machine.guest):
        yield machine


def test_before_anybody_serves_it_says_so(machine):
    done = machine.run(
        *machine.command("ssh", "-o", f"ProxyCommand={sys.executable} -m virtserial pipe --session --timeout 2 %n",
                         f"root@{machine.name}.vm", "true"),
    )  # fmt: skip
    assert done.returncode == 255
    assert "the guest does not answer (2 s): has it started, and does `virtserial_guest sshd` run there?" in done.stderr


def test_an_sshd_that_is_missing_is_a_clear_line(machine):
    with serving(machine.guest, "--exec /no/sshd -i"):
        done = machine.ssh("true")
    assert (done.returncode, "there is no /no/sshd in the guest" in done.stderr) == (255, True), done.stderr


def test_a_key_that_is_refused_is_a_clear_line(served):
    done = served.run(
        *served.command("ssh", "-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "BatchMode=yes",
                        f"nobody@{served.name}.vm", "true"),
    )  # fmt: skip
    assert (done.returncode, "Permission denied (publickey" in done.stderr) == (255, True), done.stderr
    wait_until(lambda: not find_vm_port(f"{served.name}/{PORT}").clients)


def test_a_command_runs_in_a_guest_without_a_network(served):
    links = served.ssh("ls /sys/class/net")
    assert (links.returncode, set(links.stdout.split()) <= {"lo", "sit0"}) == (0, True), links
    done = served.ssh("uname -a; echo out; echo err >&2; exit 7")
    assert done.returncode == 7
    assert done.stdout.startswith("Linux guest ")
    assert (done.stdout.endswith("out\n"), done.stderr) == (True, "err\n")


def test_virtserial_ssh_is_ssh(served):
    served.end_sharing()
    done = served.run(
        sys.executable, "-m", "virtserial", "ssh", f"root@{served.name}", "-F", "/dev/null",
        "-i", f"{served.folder}/key", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
        "echo", "by", "name",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "by name\n"), done.stderr
    # What `ssh-config` prints shares its connection: another would find the port busy.
    printed = served.run(sys.executable, "-m", "virtserial", "ssh-config").stdout
    (served.folder / "printed").write_text(printed)
    ssh = ["ssh", "-F", f"{served.folder}/printed"]
    done = served.run(*ssh, f"root@{served.name}.vm", "echo", "by the file")
    assert (done.returncode, done.stdout) == (0, "by the file\n"), done.stderr
    assert served.run(*ssh, "-O", "exit", f"root@{served.name}.vm").returncode == 0
    wait_until(lambda: not find_vm_port(f"{served.name}/{PORT}").clients)


def test_ten_sessions_share_the_one_connection(served):
    assert served.ssh("true").returncode == 0
    found = {}

    def one(number):
        found[number] = served.ssh(f"sleep 1; echo {number}").stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"{number}\n" for number in range(10)}


@pytest.mark.timeout(3 * LIMIT)
def test_ssh_and_scp_go_through_a_cluster_of_brokers(served, folder, monkeypatch):
    served.end_sharing()
    with joined_cluster(folder, served.name) as (_, environment):
        monkeypatch.setitem(ENVIRONMENT, "VIRTSERIAL_FLEET", environment["VIRTSERIAL_FLEET"])
        there = f"root@{served.name}.h1.vm"
        done = served.run(*served.command("ssh", there, "echo through the broker"))
        assert (done.returncode, done.stdout) == (0, "through the broker\n"), done.stderr
        data = random.randbytes(MEGABYTES << 20)
        (folder / "file").write_bytes(data)
        begun = time.monotonic()
        done = served.run(*served.command("scp", "-q", f"{folder}/file", f"{there}:/tmp/file"))
        assert done.returncode == 0, done.stderr
        print(f"scp through 3 brokers: {len(data) / 1e6 / (time.monotonic() - begun):.1f} MB/s")
        done = served.run(*served.command("ssh", there, "sha256sum /tmp/file"))
        assert done.stdout.split()[0] == hashlib.sha256(data).hexdigest()
        served.run(*served.command("ssh", there, "rm /tmp/file"))
        served.run(*served.command("ssh", "-O", "exit", there))


HTTP_SERVER = "python3 -m http.server --bind 127.0.0.1 80"


def test_a_tcp_port_of_the_guest_is_forwarded_to_the_host(served):
    """`ssh -L`, to a server in the guest's own loopback."""
    served.guest.check("ip link set lo up; mkdir -p /tmp/www && echo hello from the guest > /tmp/www/page")
    job = served.guest.start(f"cd /tmp/www && exec {HTTP_SERVER}")
    forward = [*served.command("ssh", "-N", "-L", f"{served.folder}/http:127.0.0.1:80", f"root@{served.name}.vm")]
    with subprocess.Popen(forward, env=ENVIRONMENT) as tunnel:
        try:
            wait_until(lambda: page(served.folder / "http").endswith(b"\r\n\r\nhello from the guest\n"))
        finally:
            tunnel.terminate()
            job.signal(9)
            job.wait()


def page(path):
    """What the server behind a UNIX socket answers; b"" while there is none."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        try:
            client.connect(str(path))
            client.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: client.recv(4096), b""))
        except OSError:
            return b""


@pytest.mark.parametrize("words", [(), ("--worker",)], ids=["both", "worker"])
def test_a_session_goes_on_over_a_restart(served, words):
    count = 400
    program = f"i=0; while [ $i -lt {count} ]; do echo line $i; i=$((i+1)); [ $((i % 20)) = 0 ] && sleep 0.1; done; cat"
    with subprocess.Popen(
        served.command("ssh", f"root@{served.name}.vm", program),
        env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as session:  # fmt: skip
        lines = [session.stdout.readline()]
        done = served.run(
            sys.executable, "-m", "virtserial", "restart", "--monitor", f"{served.folder}/qmp", *words
        )
        assert done.returncode == 0, done.stderr
        session.stdin.write("and what was typed\n")
        session.stdin.close()
        lines += session.stdout.readlines()
    assert (session.returncode, lines) == (0, [*(f"line {n}\n" for n in range(count)), "and what was typed\n"])


def test_scp_and_rsync_copy_trees(served, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(MEGABYTES // 2):
        (tree / f"file{number}").write_bytes(random.Random(number).randbytes(2 << 20))
    sums = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in tree.iterdir())
    done = served.run(*served.command("scp", "-q", "-r", str(tree), f"root@{served.name}.vm:/tmp/"))
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[0] for line in served.ssh("sha256sum /tmp/tree/*").stdout.splitlines()) == sums
    done = served.run(*served.command("scp", "-q", "-r", f"root@{served.name}.vm:/tmp/tree", f"{tmp_path}/back"))
    assert done.returncode == 0, done.stderr
    assert sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "back").iterdir()) == sums
    if shutil.which("rsync"):
        shell = " ".join(served.command("ssh"))
        done = served.run("rsync", "-a", "--checksum", "-e", shell, f"{tree}/", f"root@{served.name}.vm:/tmp/tree/")
        assert done.returncode == 0, done.stderr
    served.ssh("rm -rf /tmp/tree")


def test_the_guests_driver_is_checked_by_ssh(served):
    """tests/interop/test_guest_contract.py plays all cases."""
    target = "guest:" + shlex.join(served.command("ssh", f"root@{served.name}.vm"))
    words = ["conformance", target, "g01", "g04", "g10", "--host", f"org.test.app=unix:{served.folder}/app", "--tap"]
    done = served.run(sys.executable, "-m", "virtserial", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^(ok|not ok) \d+ - (\w+) ", done.stdout, re.MULTILINE) == [
        ("ok", "g01"), ("ok", "g04"), ("ok", "g10"),
    ]  # fmt: skip
