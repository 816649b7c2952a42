"""`virtserial exporter` beside real keepers that come, go, are killed, restart and hang."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.certificates import Authority
from support.device_process import connect
from support.embedded_guest import EmbeddedGuest
from support.exporter import exporter, scrape, value, values
from support.pretender import pretender
from support.programs import run
from support.serving import serve
from support.waiting import PATIENCE, wait_until

pytest.importorskip("prometheus_client")
PORT = "org.example.0"


@pytest.fixture(scope="module")
def registry(module_folder):
    return module_folder / "vms"


def machine(folder, name):
    return [
        "--name", name, "-device", f"virtio-serial,id=ser0,socket={folder}/{name}.sock",
        "-chardev", f"socket,id=c0,path={folder}/{name}0,server=on,wait=off",
        "-device", f"virtserialport,chardev=c0,name={PORT}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alpha(module_folder, registry):
    with serve(*machine(module_folder, "alpha"), registry=registry) as process:
        yield process


@pytest.fixture(scope="module")
def url(alpha, registry):
    with exporter(registry) as where:
        yield where


def test_bytes_of_a_guest_are_told_exactly(alpha, url, module_folder):
    with EmbeddedGuest(str(module_folder / "alpha.sock"), PORT) as guest:
        guest.check_port(PORT, f"{module_folder}/alpha0", 300_000)
        figures = scrape(url)
    for way in ("to_host", "to_guest"):
        assert value(figures, "virtserial_port_bytes_total", vm="alpha", port=PORT, direction=way) == 300_000
    assert value(figures, "virtserial_controller_vmm_connected", vm="alpha") == 1
    assert value(figures, "virtserial_resident_memory_bytes", vm="alpha", process="worker") > 1 << 20


def test_messages_and_the_time_for_which_a_guest_waits_are_told(alpha, url, module_folder):
    def told(name, **labels):
        return value(scrape(url), f"virtserial_port_{name}_total", vm="alpha", port=PORT, **labels)

    with EmbeddedGuest(str(module_folder / "alpha.sock"), PORT) as guest, connect(f"{module_folder}/alpha0") as host:
        received = guest.open(PORT)
        guest.run_until(lambda: received.port.host_connected)
        for _ in range(5):
            received.port.write(b"message")
            assert host.recv(100) == b"message"
            guest.loop.run_once(timeout=0.01)
        wait_until(lambda: told("messages", direction="to_host") == 5, step=0.3)
        # The host reads no more: the guest waits.
        guest.run_until(lambda: not received.port.write(b"x" * 50_000))
        before = wait_until(lambda: told("throttled_seconds"), step=0.3)
        assert told("throttled_seconds") >= before
        wait_until(lambda: told("throttled_seconds") > before + 0.5, step=0.3)


def test_the_worker_s_latency_is_measured_at_each_scrape(alpha, url):
    answers = "virtserial_worker_latency_seconds_count"
    before = value(scrape(url), answers, vm="alpha")
    wait_until(lambda: value(scrape(url), answers, vm="alpha") > before, step=0.3)


def test_vms_that_come_and_go_have_series_while_they_are_there(alpha, url, registry, module_folder):
    with serve(*machine(module_folder, "beta"), registry=registry) as beta:
        wait_until(lambda: values(scrape(url), "virtserial_vm_up", vm="beta") == [1], step=0.3)
        beta.kill()
        beta.wait()
        wait_until(lambda: not values(scrape(url), "virtserial_vm_up", vm="beta"), step=0.3)
    assert values(scrape(url), "virtserial_vm_up", vm="alpha") == [1]


def worker_of(keeper):
    return int(Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()[0])


def test_a_killed_worker_and_a_restart_are_counted(alpha, url, registry):
    os.kill(worker_of(alpha.pid), signal.SIGKILL)
    wait_until(lambda: value(scrape(url), "virtserial_worker_restarts_total", vm="alpha") == 1, step=0.3)
    assert run("restart", "alpha", VIRTSERIAL_REGISTRY=str(registry))[0] == 0
    wait_until(lambda: values(scrape(url), "virtserial_keeper_upgrades_total", vm="alpha") == [1], step=0.3)


def test_a_worker_that_hangs_is_seen_and_not_ended_while_nobody_waits_for_it(alpha, url, registry):
    assert run("health", "--wait", "10", "alpha", VIRTSERIAL_REGISTRY=str(registry))[0] == 0
    worker = worker_of(alpha.pid)
    os.kill(worker, signal.SIGSTOP)
    try:
        unanswered = "virtserial_worker_unanswered_seconds"
        wait_until(lambda: value(scrape(url), unanswered, vm="alpha") > 4, step=0.3)
    finally:
        os.kill(worker, signal.SIGCONT)
    wait_until(lambda: value(scrape(url), unanswered, vm="alpha") < 1, step=0.3)
    assert worker_of(alpha.pid) == worker


def test_one_that_hangs_and_one_that_lies_cost_a_scrape_three_seconds(alpha, url, registry, module_folder):
    with serve(*machine(module_folder, "slow"), registry=registry) as slow, pretender(registry, b'{"return": 5}\r\n'):
        slow.send_signal(signal.SIGSTOP)
        try:
            time.sleep(1.1)  # A survey is good for a second.
            begun = time.monotonic()
            figures = scrape(url)
            # On a machine with nothing else to do it is 3 s, and never more than 5.
            assert time.monotonic() - begun < 10 * PATIENCE
            assert value(figures, "virtserial_exporter_survey_seconds") < 5 * PATIENCE
        finally:
            slow.send_signal(signal.SIGCONT)
    for name, is_up in (("alpha", 1), ("slow", 0), ("pretender", 0)):
        assert value(figures, "virtserial_vm_up", vm=name) == is_up


def test_other_paths_and_garbage_are_refused(url):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(url.removesuffix("metrics") + "other", timeout=60)
    place = url.split("/")[2].rpartition(":")
    with socket.create_connection((place[0], int(place[2])), 20) as client:
        client.sendall(b"\0\xff" * 50_000 + b"\r\n\r\n")
        wait_until(lambda: not _receive(client))
    assert scrape(url)


def _receive(client):
    try:
        return client.recv(65536)
    except ConnectionError:
        return b""


IMPATIENT = """
from virtserial.cli.main import main
from virtserial.metrics import server
server.CLIENT_TIME = server._Handler.timeout = 2.0
raise SystemExit(main())
"""
"""The exporter, which waits for a client two seconds in the place of ten."""


def test_clients_that_ask_nothing_do_not_add_up(alpha, registry):
    with exporter(registry, program=("-c", IMPATIENT)) as url:
        clients_are_closed(url)


def clients_are_closed(url):
    host, _, port = url.split("/")[2].rpartition(":")
    clients = [socket.create_connection((host, int(port)), 20) for _ in range(40)]
    try:
        wait_until(lambda: sum(map(_is_closed, clients)) >= 20)
    finally:
        for client in clients:
            client.close()
    wait_until(lambda: _try(url), step=0.2)


def _is_closed(client):
    try:
        return client.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _try(url):
    try:
        return scrape(url)
    except (OSError, urllib.error.URLError):
        return None


def test_https(alpha, registry, tmp_path):
    folder = Authority(tmp_path / "authority", "test").issue(tmp_path / "server", "server")
    trust = ssl.create_default_context(cafile=f"{folder}/ca-cert.pem")
    options = ["--tls-cert", f"{folder}/server-cert.pem", "--tls-key", f"{folder}/server-key.pem"]
    with exporter(registry, *options) as where:
        assert where.startswith("https://127.0.0.1:")
        assert values(scrape(where, context=trust), "virtserial_vm_up", vm="alpha") == [1]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--listen", "nowhere:x"], 2, "--listen nowhere:x: not HOST:PORT"),
        (["--listen", "127.0.0.1:99999999"], 2, "--listen 127.0.0.1:99999999: not HOST:PORT"),
        (["--listen", "192.0.2.1:9817"], 1, "--listen 192.0.2.1:9817: Cannot assign requested address"),
        (["--tls-cert", "/nothing.pem"], 1, "--tls-cert /nothing.pem, --tls-key : No such file or directory"),
    ],
)
def test_a_wrong_option_is_one_line(words, status, said):
    told, output, errors = run("exporter", *words)
    assert (told, output) == (status, "")
    assert errors.startswith(f"virtserial: {said}")


def test_the_missing_extra_is_named(tmp_path):
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError(name='prometheus_client')\n")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parents[2]}/src"
    assert run("exporter", PYTHONPATH=path) == (
        1, "",
        "virtserial: virtserial exporter needs the package prometheus_client, which is not installed\n"
        "virtserial: pipx inject virtserial prometheus-client, or python3-prometheus-client of your distribution\n",
    )  # fmt: skip
