"""A keeper that goes on with new code in its own place: what was there is there still."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import termios
import threading
import time

import pytest
from support.certificates import Authority
from support.device_process import connect, controller_options, port_options
from support.embedded_guest import EmbeddedGuest
from support.places import ENVIRONMENT
from support.rounds import rounds
from support.waiting import wait_for_socket, wait_until

from virtserial.client.qmp import QmpClient
from virtserial.vfio_user.client import Client

COUNTING = """
import os

async def serve(reader, writer):
    lines = 0
    while await reader.readline():
        lines += 1
        writer.write(b"%d %d\\n" % (os.getpid(), lines))
        await writer.drain()
"""


def monitor_options(folder):
    return ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]


def chardev_port(number, name, chardev, driver="virtserialport"):
    device = f"{driver},bus=ser0.0,nr={number},chardev={name},name={name}"
    return ["-chardev", f"{chardev},id={name}", "-device", device]


def renew(monitor):
    """Have keeper and worker replaced; returns what the monitor then says."""
    monitor.execute("x-virtserial-restart", {"keeper": True})
    query = wait_until(lambda: not (found := monitor.execute("x-virtserial-query"))["changing"] and found, 30)
    assert query["refusal"] == ""
    return query


def filenames(monitor):
    return {entry["label"]: entry["filename"] for entry in monitor.execute("query-chardev")}


def test_sockets_connections_and_those_who_wait_stay(start, folder):
    device = start(
        *controller_options(folder), *port_options(folder, "a"),
        *chardev_port(2, "tcp", "socket,host=127.0.0.1,port=0,server=on,wait=off"), *monitor_options(folder),
    )  # fmt: skip
    with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "a", "tcp") as guest:
        port = int(filenames(monitor)["tcp"].split(",")[0].rpartition(":")[2])
        received = guest.open("a"), guest.open("tcp")
        with connect(folder / "a") as host, connect(folder / "a") as second:
            host.sendall(b"before")
            guest.run_until(lambda: received[0].data == b"before")
            second.sendall(b"waited")
            # The keeper hears of the client from the worker, which serves it at once.
            wait_until(lambda: not filenames(monitor)["a"].startswith("disconnected:"))
            named = filenames(monitor)
            assert renew(monitor)["keeper-restarts"] == 1
            assert filenames(monitor) == named
            host.sendall(b", after")
            guest.run_until(lambda: received[0].data == b"before, after")
            host.close()
            guest.run_until(lambda: received[0].data == b"before, afterwaited")
        with socket.create_connection(("127.0.0.1", port), timeout=60) as late:
            late.sendall(b"the same port")
            guest.run_until(lambda: received[1].data == b"the same port")
        assert guest.failure is None
    assert device.stop() == 0
    assert {path.name for path in folder.iterdir()} == {"log0", "out0"}
    assert device.log == ""


def test_client_that_is_connected_stays_and_one_that_is_not_tries_again(start, folder):
    listeners = {name: socket.socket(socket.AF_UNIX) for name in ("up", "down")}
    for name, listener in listeners.items():
        listener.settimeout(60)
        listener.bind(f"{folder}/{name}")
    listeners["up"].listen()
    device = start(
        *controller_options(folder), *monitor_options(folder),
        *chardev_port(1, "up", f"socket,path={folder}/up,reconnect-ms=50"),
        *chardev_port(2, "down", f"socket,path={folder}/down,reconnect-ms=50"),
    )  # fmt: skip
    with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "up", "down") as guest:
        received = {name: guest.open(name) for name in listeners}
        host, _ = listeners["up"].accept()
        renew(monitor)
        host.sendall(b"still here")
        guest.run_until(lambda: received["up"].data == b"still here")
        listeners["down"].listen()
        late, _ = listeners["down"].accept()
        late.sendall(b"at last")
        guest.run_until(lambda: received["down"].data == b"at last")
        host.close()
        again, _ = listeners["up"].accept()
        again.sendall(b", and again")
        guest.run_until(lambda: received["up"].data == b"still here, and again")
        for each in (late, again, *listeners.values()):
            each.close()
    assert "internal error" not in device.log


def test_terminals_rings_files_and_logs_stay(start, folder):
    device = start(
        *controller_options(folder), *monitor_options(folder),
        *chardev_port(1, "pty", f"pty,path={folder}/pty"),
        *chardev_port(2, "ring", "ringbuf,size=64"),
        *chardev_port(3, "file", f"file,path={folder}/file"),
        *chardev_port(4, "log", f"socket,path={folder}/log,server=on,wait=off,logfile={folder}/logged"),
        *("-chardev", "null,id=part,logfile=/dev/null", "-chardev", "hub,id=hub,chardevs.0=part"),
        *("-device", "virtserialport,bus=ser0.0,nr=5,chardev=hub,name=hub"),
    )  # fmt: skip
    with (
        QmpClient(f"{folder}/qmp", 30) as monitor,
        EmbeddedGuest(folder / "ser0.sock", "pty", "ring", "file", "log", "hub") as guest,
    ):
        line = os.open(f"{folder}/pty", os.O_RDWR | os.O_NOCTTY)
        ports = {name: guest.open(name) for name in ("pty", "ring", "file", "log", "hub")}
        guest.run_until(lambda: ports["pty"].port.host_connected and ports["ring"].port.host_connected)

        def say(text):
            for name in ("ring", "file"):
                ports[name].port.write(text)
            with connect(folder / "log") as host:
                guest.run_until(lambda: ports["log"].port.host_connected)
                ports["log"].port.write(text)
                guest.run_until(lambda: select.select([host], [], [], 0)[0])
                assert host.recv(100) == text
            guest.run_until(lambda: not ports["log"].port.host_connected)

        say(b"before")
        renew(monitor)
        say(b", after")
        os.write(line, b"the same terminal")
        guest.run_until(lambda: ports["pty"].data == b"the same terminal")
        os.close(line)
        kept = []

        def all_kept():
            kept.append(monitor.execute("ringbuf-read", {"device": "ring", "size": 64}))
            return "".join(kept) == "before, after"

        guest.run_until(all_kept)
        wait_until(lambda: os.path.getsize(folder / "file") == 13)
        assert (folder / "file").read_bytes() == b"before, after"
        assert (folder / "logged").read_bytes() == b"before, after"
    assert device.stop() == 0
    assert not os.path.lexists(folder / "pty")
    assert device.log == ""


def test_handler_process_goes_on_and_ends_with_the_device(start, folder):
    code = folder / "counting.py"
    code.write_text(COUNTING)
    device = start(
        *controller_options(folder), *monitor_options(folder), *chardev_port(1, "count", f"handler,path={code}")
    )
    with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "count") as guest:
        received = guest.open("count")
        guest.run_until(lambda: received.port.host_connected)
        received.port.write(b"one\n")
        guest.run_until(lambda: received.data.endswith(b" 1\n"))
        renew(monitor)
        received.port.write(b"two\n")
        guest.run_until(lambda: received.data.endswith(b" 2\n"))
        first, second = (int(line.split()[0]) for line in received.data.splitlines())
        assert first == second
        # One that ends is noticed, and begins again with the guest's next opening.
        os.kill(first, signal.SIGKILL)
        device.wait_for_log("the handler's process ended with status -9")
        guest.run_until(lambda: not received.port.host_connected)
        received.port.close()
        received = guest.open("count")
        guest.run_until(lambda: received.port.host_connected)
        received.port.write(b"three\n")
        guest.run_until(lambda: received.data.endswith(b" 1\n"))
        third = int(received.data.split()[0])
        renew(monitor)
    assert device.stop() == 0
    assert not os.path.exists(f"/proc/{third}")


def test_what_came_and_went_at_run_time_is_remembered(start, folder):
    device = start(
        *controller_options(folder), *port_options(folder, "a"), *port_options(folder, "b", 2), *monitor_options(folder)
    )
    with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        monitor.execute("device_add", {"driver": "virtio-serial", "id": "ser1", "socket": f"{folder}/ser1.sock"})
        address = {"type": "unix", "data": {"path": f"{folder}/c"}}
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        monitor.execute("chardev-add", {"id": "c", "backend": backend})
        port = {"driver": "virtserialport", "id": "p", "bus": "ser0.0", "chardev": "c", "name": "c"}
        monitor.execute("device_add", port)
        renew(monitor)
        guest.run_until(lambda: {"c"} <= {each.name for each in guest.driver.ports.values()})
        guest.check_port("c", folder / "c")
        with EmbeddedGuest(folder / "ser1.sock"):
            pass
        with pytest.raises(Exception, match="Duplicate device ID 'p'"):
            monitor.execute("device_add", port)
        with pytest.raises(Exception, match="Chardev 'c' is busy"):
            monitor.execute("chardev-remove", {"id": "c"})
        monitor.execute("device_del", {"id": "p"})
        monitor.execute("chardev-remove", {"id": "c"})
        guest.run_until(lambda: "c" not in {each.name for each in guest.driver.ports.values()})
        monitor.execute("device_add", {"driver": "virtserialport", "bus": "ser0.0"})
        names = [entry["name"] for entry in monitor.execute("qom-list", {"path": "/machine/peripheral-anon"})]
        assert names == ["type", "port[1]", "port[2]", "port[4]"]
    assert device.stop() == 0
    assert {path.name for path in folder.iterdir()} == {"log0", "out0"}


def test_second_vmm_waits_through_it_and_its_device_stays_usable(start, folder):
    start(*controller_options(folder), *port_options(folder, "a"), *monitor_options(folder))
    with QmpClient(f"{folder}/qmp", 30) as monitor:
        with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
            renew(monitor)
            with socket.socket(socket.AF_UNIX) as second:
                second.settimeout(60)
                second.connect(f"{folder}/ser0.sock")
                assert second.recv(1) == b""  # It is refused: the first is known to be connected.
            guest.check_port("a", folder / "a")
        with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
            guest.check_port("a", folder / "a")


def test_descriptors_and_processes_do_not_pile_up(start, folder):
    device = start(*controller_options(folder), *port_options(folder, "a"), *monitor_options(folder))
    with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        renew(monitor)
        before = device.settled_descriptors()
        for _ in range(4):
            renew(monitor)
            guest.check_port("a", folder / "a", 10_000)
        assert device.settled_descriptors() == before
        assert len(device.children()) == 1
        assert monitor.execute("x-virtserial-query")["keeper-restarts"] == 5


def test_sigusr2_renews(start, folder):
    device = start(*controller_options(folder), *port_options(folder, "a"))
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        for _ in range(2):
            worker = device.worker
            device.process.send_signal(signal.SIGUSR2)
            wait_until(lambda old=worker: not os.path.exists(f"/proc/{old}"), 20)
            guest.check_port("a", folder / "a", 50_000)


def test_sigterm_at_any_moment_of_it_ends_all(start, folder):
    for number in range(0, 20, rounds(2, 1)):
        name = f"x{number}"
        device = start(*controller_options(folder, name), *port_options(folder, f"y{number}", bus=name))
        with EmbeddedGuest(folder / f"{name}.sock", f"y{number}"):
            device.process.send_signal(signal.SIGUSR2)
            time.sleep(number * 0.02)
            assert device.stop() == 0
        assert not list(folder.glob("[xy]*"))


def test_worker_that_is_killed_on_the_way_costs_nothing(start, folder):
    device = start(*controller_options(folder), *port_options(folder, "a"), *monitor_options(folder))
    with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        for _ in range(3):
            worker = device.worker
            monitor.execute("x-virtserial-restart", {"keeper": True})
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: not monitor.execute("x-virtserial-query")["changing"], 30)
            guest.check_port("a", folder / "a", 50_000)


def test_hung_worker_is_killed_for_it(start, folder):
    device = start(*controller_options(folder), *port_options(folder, "a"), *monitor_options(folder))
    with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        os.kill(device.worker, signal.SIGSTOP)
        monitor.execute("x-virtserial-restart", {"keeper": True})
        wait_until(lambda: not monitor.execute("x-virtserial-query")["changing"], 30)
        guest.check_port("a", folder / "a", 50_000)
        assert monitor.execute("x-virtserial-query")["keeper-restarts"] == 1


def test_telnet_and_tls_clients_have_to_come_again(start, folder):
    if not shutil.which("openssl"):
        pytest.skip("openssl(1) makes the certificates")
    authority = Authority(folder / "authority", "test")
    directory = authority.issue(folder / "server", "server")
    device = start(
        *controller_options(folder), *monitor_options(folder),
        "-object", f"tls-creds-x509,id=creds,endpoint=server,dir={directory},verify-peer=off",
        *chardev_port(1, "telnet", f"socket,path={folder}/telnet,server=on,wait=off,telnet=on"),
        *chardev_port(2, "tls", f"socket,path={folder}/tls,server=on,wait=off,tls-creds=creds"),
    )  # fmt: skip
    # What is needed is known to the process: the files may be gone.
    shutil.rmtree(directory)
    context = ssl.create_default_context(cafile=authority.certificate)

    def meet(name):
        """A client is there; returns its connection."""
        host = connect(folder / name)
        if name == "tls":
            host = context.wrap_socket(host, server_hostname="localhost", do_handshake_on_connect=False)
            pump = threading.Thread(target=host.do_handshake)
            pump.start()
            guest.run_until(lambda: not pump.is_alive())
        guest.run_until(lambda: ports[name].port.host_connected)
        host.sendall(b"hello")
        guest.run_until(lambda: ports[name].data.endswith(b"hello"))
        ports[name].data.clear()
        return host

    with (
        QmpClient(f"{folder}/qmp", 30) as monitor,
        EmbeddedGuest(folder / "ser0.sock", "telnet", "tls") as guest,
    ):
        ports = {name: guest.open(name) for name in ("telnet", "tls")}
        for _ in range(2):
            hosts = [meet(name) for name in ports]
            renew(monitor)
            for host in hosts:
                with contextlib.suppress(ssl.SSLError, ConnectionResetError):
                    while host.recv(100):
                        pass
                host.close()
            guest.run_until(lambda: not any(each.port.host_connected for each in ports.values()))
        for name in ports:
            meet(name).close()
    assert "internal error" not in device.log


def test_terminal_is_put_back_at_the_very_end(folder):
    terminal, line = os.openpty()
    try:
        before = termios.tcgetattr(line)
        process = subprocess.Popen(
            [sys.executable, "-m", "virtserial", "serve", *controller_options(folder),
             *chardev_port(0, "s", "stdio", "virtconsole"), *monitor_options(folder)],
            env=ENVIRONMENT, stdin=line, stdout=line, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            wait_for_socket(folder / "qmp")
            wait_until(lambda: termios.tcgetattr(line) != before)
            with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "s") as guest:
                received = guest.open("s")
                renew(monitor)
                assert termios.tcgetattr(line) != before
                os.write(terminal, b"typed")
                guest.run_until(lambda: received.data == b"typed")
        finally:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=60)
        assert termios.tcgetattr(line) == before
    finally:
        os.close(terminal)
        os.close(line)


def test_other_processes_cannot_pass_for_a_predecessor(start, folder):
    """A variable that names no descriptor, or one with nothing to go on with, is a start like any other."""
    for value in ("nonsense", "999999", "0"):
        device = start(
            *controller_options(folder), *port_options(folder, "a"),
            environment={**ENVIRONMENT, "VIRTSERIAL_HANDOVER": value},
        )  # fmt: skip
        with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
            guest.check_port("a", folder / "a", 1000)
        assert device.stop() == 0


def test_attached_vmm_without_a_driver_goes_on_as_well(start, folder):
    start(*controller_options(folder), *port_options(folder, "a"), *monitor_options(folder))
    with QmpClient(f"{folder}/qmp", 30) as monitor:
        client = Client(f"{folder}/ser0.sock")
        try:
            identity = client.region_read(7, 0, 4)
            renew(monitor)
            assert client.region_read(7, 0, 4) == identity
        finally:
            client.close()
