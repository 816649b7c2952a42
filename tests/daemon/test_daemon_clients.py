"""Several clients on one port, through keeper and worker: kills and restarts, late ones, slow ones, those who watch."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import ssl
import time

import pytest
from support.certificates import Authority
from support.device_process import connect, controller_options
from support.embedded_guest import EmbeddedGuest, jumps, try_receive, try_send
from support.waiting import PATIENCE, wait_until
from support.websocket_client import WebSocketClient

from virtserial.client.qmp import QmpClient

KILLS = int(os.environ.get("VIRTSERIAL_KILLS", "5"))


@pytest.fixture
def serve(start, folder):
    """Starts a device with one port `a`, whose chardev has the given options."""

    def serve(options, *more, address=None):
        address = address or f"path={folder}/a"
        return start(
            *more, *controller_options(folder), "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
            "-chardev", f"socket,id=a,{address},server=on,wait=off,{options}",
            "-device", "virtserialport,bus=ser0.0,nr=1,chardev=a,name=a",
        )  # fmt: skip

    return serve


@pytest.fixture
def monitor(folder):
    """Connects to the device's monitor."""
    clients = []

    def connect_monitor():
        clients.append(QmpClient(f"{folder}/qmp", 30))
        return clients[-1]

    yield connect_monitor
    for client in clients:
        client.close()


def clients_of(monitor):
    (found,) = monitor.execute("x-virtserial-query-clients")
    return found


def replace_worker(device, monitor, how):
    """Kill the worker, or have it or both processes replaced; wait until the next serves."""
    if how == "kill":
        device.wait_for_new_worker(device.kill_worker())
    else:
        monitor.execute("x-virtserial-restart", {"keeper": True} if how == "both" else {})
    wait_until(lambda: not monitor.execute("x-virtserial-query")["changing"], 30)


@pytest.mark.timeout(PATIENCE * (60 + 10 * KILLS))
@pytest.mark.parametrize("how", ["kill", "worker", "both"])
def test_every_reader_has_every_byte_over_kills_and_restarts_and_the_slow_one_is_counted(
    serve, monitor, folder, how
):
    device = serve(f"clients=10,backlog=64k,slow=drop,watch={folder}/watch")
    control = monitor()
    rounds = KILLS if how == "kill" else 2
    data = random.randbytes(12 << 20)
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        port = guest.open("a")
        guest.run_until(lambda: port.port.host_connected)  # the backlog takes it
        readers = [connect(folder / "a") for _ in range(7)] + [connect(folder / "watch")]
        mute = connect(folder / "a")
        writers = readers[:3]
        wait_until(lambda: len(clients_of(control)["clients"]) == 9)
        taken = [bytearray() for _ in readers]
        given = [0, 0, 0]
        # Of each byte two bits tell whose it is.
        inputs = [bytes(byte & ~3 | index for byte in random.randbytes(1 << 20)) for index in range(3)]
        for each in readers:
            each.setblocking(False)
        sent = done = 0
        late = None
        late_taken = bytearray()
        limit = time.monotonic() + PATIENCE * (50 + 9 * rounds)
        size = sum(map(len, inputs))
        while done < rounds or min(map(len, taken)) < len(data) or len(port.data) < size:
            assert time.monotonic() < limit, f"{done}, {[len(each) for each in taken]}, {len(port.data)}"
            assert guest.failure is None, device.log
            end = len(data) * (done + 1) // (rounds + 1)
            sent += port.port.write(data[sent : min(sent + 50_000, end)]) if sent < end else 0
            for each, into in zip(readers, taken, strict=True):
                into += try_receive(each)
            for index, each in enumerate(writers):
                most = len(inputs[index]) * (done + 1) // (rounds + 1)
                given[index] += try_send(each, inputs[index][given[index] : min(given[index] + 20_000, most)])
            if late is None and sent > len(data) // 2:
                late = connect(folder / "a")
                late.setblocking(False)
            if late is not None:
                late_taken += try_receive(late)
            guest.loop.run_once(timeout=0.001)
            # In the middle of it: not all that was allowed until now has come.
            if done < rounds and sent > end - 300_000:
                replace_worker(device, control, how)
                done += 1
        for each, into in zip(readers, taken, strict=True):
            assert into == data, jumps(data, into)
            each.close()
        wait_until(lambda: late_taken.extend(try_receive(late)) or data.endswith(late_taken[-1000:]))
        assert data.endswith(late_taken), jumps(data, late_taken)
        assert len(late_taken) >= 64 << 10
        for index, each in enumerate(inputs):
            came = bytes(byte for byte in port.data if byte & 3 == index)
            assert came == each, jumps(each, came)
        # The mute one wakes up: what it gets and what is counted is all there was.
        dropped = clients_of(control)["dropped"]
        assert dropped > 0
        mute.setblocking(False)
        got = bytearray()
        wait_until(lambda: got.extend(try_receive(mute)) or len(got) + dropped >= len(data), 20)
        assert len(got) + clients_of(control)["dropped"] == len(data)
        port.port.close()
        mute.close()
        late.close()
    found = control.execute("x-virtserial-query")
    assert (found["doubtful-bytes"], found["restarts"]) == (0, rounds if how == "kill" else 0)
    assert "internal error" not in device.log


def test_what_was_said_before_anybody_came_survives_a_kill_and_a_restart(serve, monitor, folder):
    device = serve("backlog=1M")
    control = monitor()
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        port = guest.open("a")
        guest.run_until(lambda: port.port.host_connected)
        for text, how in ((b"first ", "kill"), (b"second ", "both"), (b"third", "worker")):
            assert port.port.write(text) == len(text)
            wait_until(lambda: guest.loop.run_once(timeout=0.01) or clients_of(control)["written"] >= 6)
            replace_worker(device, control, how)
        wait_until(lambda: guest.loop.run_once(timeout=0.01) or clients_of(control)["written"] == 18)
        for _ in range(2):
            with connect(folder / "a") as late:
                assert late.recv(18, socket.MSG_WAITALL) == b"first second third"
        assert port.port.host_connected


def test_clients_that_came_before_the_guest_are_served(serve, monitor, folder):
    serve("clients=2")
    control = monitor()
    with connect(folder / "a") as one, connect(folder / "a") as two:
        wait_until(lambda: len(clients_of(control)["clients"]) == 2)
        with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
            port = guest.open("a")
            guest.run_until(lambda: port.port.host_connected)
            port.port.write(b"both")
            for each in (one, two):
                guest.run_until(lambda each=each: each.setblocking(False) or try_receive(each) == b"both")


def test_clients_stay_while_their_port_is_plugged_anew(serve, monitor, folder):
    serve("clients=2")
    control = monitor()
    again = {"driver": "virtserialport", "bus": "ser0.0", "nr": 3, "chardev": "a", "name": "again", "id": "p"}
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest, connect(folder / "a") as one, connect(folder / "a") as two:
        wait_until(lambda: len(clients_of(control)["clients"]) == 2)
        listed = control.execute("qom-list", {"path": "/machine/peripheral-anon"})
        (name,) = (each["name"] for each in listed if "port" in each["name"])
        control.execute("device_del", {"id": f"/machine/peripheral-anon/{name}"})
        control.execute("device_add", again)
        guest.run_until(lambda: "again" in {port.name for port in guest.driver.ports.values()})
        plugged = guest.open("again")
        guest.run_until(lambda: plugged.port.host_connected)
        plugged.port.write(b"both")
        for each in (one, two):
            assert each.recv(4, socket.MSG_WAITALL) == b"both"
        two.sendall(b"heard")
        guest.run_until(lambda: plugged.data == b"heard")


def test_websocket_clients_share_a_port_and_come_again_after_a_kill(serve, monitor, folder):
    device = serve("clients=3,backlog=4k,websocket=on")

    opened = contextlib.ExitStack()

    def client():
        sock = opened.enter_context(connect(folder / "a"))
        web = WebSocketClient(sock)
        web.request()
        web.response()
        return web

    with opened, EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        port = guest.open("a")
        guest.run_until(lambda: port.port.host_connected)
        port.port.write(b"said before")
        one, two = client(), client()
        for each in (one, two):
            assert each.receive_bytes(11) == b"said before"
        old = device.kill_worker()
        device.wait_for_new_worker(old)
        for each in (one, two):
            assert ended(each.socket)
        again = client()
        assert again.receive_bytes(11) == b"said before"


def ended(sock):
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


def test_tls_clients_share_a_port(serve, monitor, folder):
    if not shutil.which("openssl"):
        pytest.skip("openssl(1) makes the certificates")
    authority = Authority(folder / "authority", "test")
    directory = authority.issue(folder / "server", "server")
    serve(
        "clients=2,backlog=4k,tls-creds=creds",
        "-object", f"tls-creds-x509,id=creds,endpoint=server,dir={directory},verify-peer=off",
    )  # fmt: skip
    context = ssl.create_default_context(cafile=authority.certificate)
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        port = guest.open("a")
        guest.run_until(lambda: port.port.host_connected)
        port.port.write(b"secret")
        guest.loop.run_once(timeout=0.05)
        with (
            context.wrap_socket(connect(folder / "a"), server_hostname="localhost") as one,
            context.wrap_socket(connect(folder / "a"), server_hostname="localhost") as two,
        ):
            assert one.recv(6) == two.recv(6) == b"secret"
            two.sendall(b"answer")
            guest.run_until(lambda: port.data == b"answer")


def test_what_runs_here_counts_all_and_a_client_can_be_sent_away(serve, monitor, folder):
    serve(f"clients=2,backlog=4k,watch={folder}/watch")
    control = monitor()
    (port,) = control.execute("x-virtserial-inventory")["ports"]
    assert (port["clients"], port["client-pid"]) == (0, 0)
    with connect(folder / "watch"), connect(folder / "a") as one, connect(folder / "a"):
        wait_until(lambda: control.execute("x-virtserial-inventory")["ports"][0]["clients"] == 3)
        assert control.execute("x-virtserial-inventory")["ports"][0]["client-pid"] == os.getpid()
        control.execute("x-virtserial-disconnect", {"id": "a"})
        assert ended(one)
        wait_until(lambda: len(clients_of(control)["clients"]) == 2)


def test_a_log_file_has_what_all_clients_got(serve, monitor, folder):
    device = serve(f"clients=2,logfile={folder}/log.txt,slow=disconnect")
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest, connect(folder / "a") as host:
        port = guest.open("a")
        guest.run_until(lambda: port.port.host_connected)
        port.port.write(b"logged")
        assert host.recv(6, socket.MSG_WAITALL) == b"logged"
        replace_worker(device, monitor(), "both")
        port.port.write(b" on")
        assert host.recv(3, socket.MSG_WAITALL) == b" on"
        assert (folder / "log.txt").read_bytes() == b"logged on"


def test_clients_of_a_chardev_that_a_monitor_adds_and_changes(serve, monitor, folder):
    serve("clients=2")
    control = monitor()

    def backend(path, **options):
        address = {"type": "unix", "data": {"path": f"{folder}/{path}"}}
        return {"type": "socket", "data": {"addr": address, "server": True, **options}}

    with EmbeddedGuest(folder / "ser0.sock", "a") as guest, connect(folder / "a") as host:
        port = guest.open("a")
        guest.run_until(lambda: port.port.host_connected)
        control.execute("chardev-change", {"id": "a", "backend": backend("b", clients=3, backlog=4096, slow="drop")})
        assert ended(host)
        found = clients_of(control)
        assert (found["max-clients"], found["backlog"], found["slow"]) == (3, 4096, "drop")
        guest.run_until(lambda: port.port.host_connected)
        port.port.write(b"to b")
        with connect(folder / "b") as other:
            guest.run_until(lambda: other.setblocking(False) or try_receive(other) == b"to b")
        control.execute("chardev-add", {"id": "more", "backend": backend("c", watch=f"{folder}/w")})
        assert {each["label"] for each in control.execute("x-virtserial-query-clients")} == {"a", "more"}
        control.execute("chardev-remove", {"id": "more"})
        assert not (folder / "w").exists()


def test_a_monitor_has_one_client(start, folder):
    with pytest.raises(AssertionError, match=r"it ended: .*has several clients, and a monitor serves one"):
        start(
            "-chardev", f"socket,id=m,path={folder}/m,server=on,wait=off,clients=2", "-mon", "chardev=m,mode=control"
        )


def test_a_shared_socket_is_a_part_of_a_hub(start, folder):
    device = start(
        *controller_options(folder),
        "-chardev", f"socket,id=a,path={folder}/a,server=on,wait=off,clients=2",
        "-chardev", f"file,id=f,path={folder}/f",
        "-chardev", "hub,id=h,chardevs.0=a,chardevs.1=f",
        "-device", "virtserialport,bus=ser0.0,nr=1,chardev=h,name=a",
    )  # fmt: skip
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest, connect(folder / "a") as one, connect(folder / "a") as two:
        port = guest.open("a")
        guest.run_until(lambda: port.port.host_connected)
        one.sendall(b"first")
        guest.run_until(lambda: port.data == b"first")
        device.wait_for_new_worker(device.kill_worker())
        two.sendall(b"second")
        guest.run_until(lambda: port.data == b"firstsecond")
        port.port.write(b"to all")
        assert one.recv(6, socket.MSG_WAITALL) == two.recv(6, socket.MSG_WAITALL) == b"to all"
        assert (folder / "f").read_bytes() == b"to all"
