"""The real thing: `virtserial serve` and the driver in processes of their own, and the demonstration."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support.places import ENVIRONMENT, ROOT

from virtserial.cli.guest import Lines
from virtserial.driver.ports import PortListener
from virtserial.driver.vfio_user_device import open_vfio_user_device
from virtserial.errors import PeerError
from virtserial.loop import EventLoop


def start(*arguments, ready=True, **options):
    """Run a module and wait until it is ready."""
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-m", *arguments, *(["--ready-fd", str(write_fd)] if ready else [])]
    process = subprocess.Popen(command, env=ENVIRONMENT, pass_fds=(write_fd,), **options)
    os.close(write_fd)
    assert select.select([read_fd], [], [], 20)[0], "it does not become ready"
    os.close(read_fd)
    return process


def stop(process):
    process.terminate()
    try:
        return process.wait(60)
    finally:
        process.kill()
        if process.stdout is not None:
            process.stdout.close()


def until(condition, seconds=60):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture
def serve(tmp_path):
    """Starts the device process with one named port; its sockets are `device` and `host` in tmp_path."""

    def start_server():
        return start(
            *("virtserial", "serve"),
            *("-device", f"virtio-serial,id=ser0,socket={tmp_path}/device"),
            *("-chardev", f"socket,id=c0,path={tmp_path}/host,server=on,wait=off"),
            *("-device", "virtserialport,bus=ser0.0,chardev=c0,name=org.example.0"),
            stdout=subprocess.DEVNULL,
        )

    return start_server


@pytest.fixture
def server(serve):
    process = serve()
    yield process
    stop(process)


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(str(path))
    return connection


def test_ports_are_terminals_of_a_process_of_its_own(server, tmp_path):
    run_directory = tmp_path / "ports"
    driver = start(
        *("virtserial", "guest", "attach", str(tmp_path / "device"), "--as", "pty", "--run-dir", str(run_directory)),
        stdout=subprocess.PIPE,
    )
    try:
        until((run_directory / "virtio-ports/org.example.0").exists)
        with connect(tmp_path / "host") as host:
            fd = os.open(run_directory / "virtio-ports/org.example.0", os.O_RDWR | os.O_NOCTTY)
            os.write(fd, b"from the application")
            assert host.recv(100) == b"from the application"
            host.sendall(b"from the host")
            assert select.select([fd], [], [], 10)[0]
            assert os.read(fd, 100) == b"from the host"
            os.close(fd)
    finally:
        assert stop(driver) == 0
    assert os.listdir(run_directory) == []


def test_names_of_a_process_that_lives_stay_and_those_of_a_killed_one_are_taken_over(tmp_path):
    devices = [("-device", f"virtio-serial,id=ser{n},socket={tmp_path}/{n}") for n in range(2)]
    ports = [("-device", f"virtconsole,bus=ser{n}.0") for n in range(2)]
    server = start("virtserial", "serve", *sum(devices + ports, ()), stdout=subprocess.DEVNULL)
    node, console = tmp_path / "ports" / "vport0p0", tmp_path / "ports" / "hvc0"
    words = ("--wait", "--as", "pty", "--run-dir", str(node.parent))
    drivers = [start("virtserial", "guest", "attach", f"{tmp_path}/0", *words, stdout=subprocess.DEVNULL)]
    try:
        until(console.exists)
        terminal = os.readlink(node)
        drivers.append(start("virtserial", "guest", "attach", f"{tmp_path}/1", *words, stdout=subprocess.PIPE))
        refused = f"port 0: {node}: process {drivers[0].pid} has this name; choose another --run-dir\n"
        until(lambda: drivers[1].stdout.readline().decode() == refused)
        assert stop(drivers.pop()) == 0
        assert os.readlink(node) == terminal
        drivers[0].kill()
        drivers[0].wait()
        drivers[0] = start("virtserial", "guest", "attach", f"{tmp_path}/0", *words, stdout=subprocess.PIPE)
        until(lambda: drivers[0].stdout.readline().startswith(b"hvc0: port 0"))
    finally:
        for process in (*drivers, server):
            stop(process)
    assert os.listdir(node.parent) == []


def test_a_device_that_was_lost_is_found_again(serve, tmp_path):
    run_directory = tmp_path / "ports"
    server = serve()
    driver = start(
        *("virtserial", "guest", "attach", str(tmp_path / "device"), "--as", "pty", "--run-dir", str(run_directory)),
        stdout=subprocess.DEVNULL,
    )
    try:
        until((run_directory / "virtio-ports/org.example.0").exists)
        stop(server)
        until(lambda: os.listdir(run_directory / "virtio-ports") == [])
        server = serve()
        until((run_directory / "virtio-ports/org.example.0").exists)
        with connect(tmp_path / "host") as host:
            fd = os.open(run_directory / "virtio-ports/org.example.0", os.O_RDWR | os.O_NOCTTY)
            os.write(fd, b"again")
            assert host.recv(100) == b"again"
            os.close(fd)
    finally:
        assert stop(driver) == 0
        stop(server)


def test_ports_are_sockets_where_that_is_asked_for(server, tmp_path):
    run_directory = tmp_path / "ports"
    driver = start(
        *("virtserial", "guest", "attach", str(tmp_path / "device"), "--as", "socket", "--run-dir", str(run_directory)),
        stdout=subprocess.PIPE,
    )
    try:
        path = run_directory / "virtio-ports/org.example.0"
        until(path.exists)
        assert driver.stdout.readline() == b"ready: 1 device, ports as socket\n"
        assert (run_directory / "class/virtio-ports/vport0p1/name").read_text() == "org.example.0\n"
        with connect(tmp_path / "host") as host:
            for _ in range(3):
                with connect(path) as application:
                    application.sendall(b"from the application")
                    assert host.recv(100) == b"from the application"
                    host.sendall(b"from the host")
                    assert application.recv(100) == b"from the host"
    finally:
        assert stop(driver) == 0
    assert os.listdir(run_directory) == []


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        ((), 2, ""),
        (("--help",), 0, ""),
        (("conquer",), 2, "virtserial guest: 'conquer' is not a command; `virtserial guest --help` lists them\n"),
        (("bind",), 2, "virtserial: guest bind: a PCI address is missing\n"),
        (("unbind", "x"), 2, "virtserial: guest unbind: 'x' is not a PCI address such as 0000:00:05.0\n"),
        (("bind", "ffff:ff:1f.7"), 1, "virtserial: ffff:ff:1f.7: there is no such PCI function\n"),
        (
            ("attach", "ffff:ff:1f.7", "--as", "pty"), 1,
            "virtserial: guest attach: ffff:ff:1f.7: there is no such PCI function\n",
        ),
        (
            ("attach", "x", "--mode", "1777"), 2,
            "virtserial guest attach: argument --mode: '1777' is no mode: write octal digits, 0 to 777\n",
        ),
        (("attach", "x", "--run-dir", "/proc/x"), 1, "virtserial: /proc/x: No such file or directory\n"),
    ],
)
def test_words_that_cannot_be_followed_are_one_line_and_a_way_out(words, status, complaint, tmp_path):
    run_directory = () if "--run-dir" in words or "attach" not in words else ("--run-dir", str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-m", "virtserial", "guest", *words, *run_directory],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (result.returncode, "".join(result.stderr.splitlines(keepends=True)[:1])) == (status, complaint)
    assert result.stderr.count("\n") <= 2
    assert result.stdout.startswith("usage: virtserial guest attach DEVICE...") == (not complaint)


def test_a_device_that_makes_lines_without_end_fills_no_log(capsys):
    time = [0.0]
    lines = Lines(lambda: time[0])
    for number in range(5000):
        lines.say(f"line {number}")
    assert len(capsys.readouterr().out.splitlines()) == Lines.MAX_LINES
    time[0] = 1.0
    lines.say("later")
    assert capsys.readouterr().out == f"({5000 - Lines.MAX_LINES} lines left out)\nlater\n"


def test_no_device_there_is_one_line_and_status_1(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "virtserial", "guest", "attach", f"{tmp_path}/none", "--run-dir", str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr == (
        f"virtserial: guest attach: {tmp_path}/none: No such file or directory\n"
        "virtserial: is its server running? --wait waits for it\n"
    )


class Reader(PortListener):
    """Reads everything a port has, whenever it has something."""

    def __init__(self, port):
        self.port = port
        self.data = bytearray()
        port.open(self)

    def port_readable(self):
        while data := self.port.read(1 << 16):
            self.data += data


@pytest.mark.parametrize(
    ("sealed", "shared"), [(True, True), (False, True), (True, False)], ids=["mapped", "unsealed", "messages"]
)
def test_every_way_to_reach_the_driver_s_memory(server, tmp_path, sealed, shared):
    loop = EventLoop()
    driver = open_vfio_user_device(tmp_path / "device", loop, sealed=sealed, shared=shared)
    limit = time.monotonic() + 60

    def run_until(condition):
        while not condition():
            assert time.monotonic() < limit, "it did not come to that"
            loop.run_once(timeout=0.05)

    try:
        with connect(tmp_path / "host") as host:
            driver.start()
            run_until(lambda: 1 in driver.ports and driver.ports[1].host_connected)
            reader = Reader(driver.ports[1])
            message = os.urandom(200_000)
            host.sendall(message[:100_000])
            run_until(lambda: len(reader.data) == 100_000)
            host.setblocking(False)
            sent, received = 0, bytearray()

            def exchange():
                nonlocal sent
                sent += reader.port.write(message[sent : sent + 50_000])
                try:
                    received.extend(host.recv(1 << 20))
                except BlockingIOError:
                    return False
                return len(received) == len(message)

            run_until(exchange)
            assert reader.data == message[:100_000]
            assert received == message
    finally:
        driver.close()
        loop.close()


def test_the_driver_hears_that_the_server_is_gone(server, tmp_path):
    loop = EventLoop()
    driver = open_vfio_user_device(tmp_path / "device", loop)
    try:
        driver.start()
        while 1 not in driver.ports:
            loop.run_once(timeout=5)
        stop(server)
        while driver.ports:
            loop.run_once(timeout=5)
    finally:
        driver.close()
        loop.close()


def test_a_socket_that_is_no_vfio_user_server_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "wrong"))
        listener.listen()
        loop = EventLoop()
        with pytest.raises(PeerError):
            open_vfio_user_device(tmp_path / "wrong", loop, timeout=0.2)
        loop.close()


@pytest.fixture
def short_folder():
    """Sockets' paths are 107 bytes at most, which pytest's own folders can be too long for."""
    with tempfile.TemporaryDirectory(prefix="demo", dir="/tmp") as folder:
        yield folder


def test_the_demonstration_moves_every_file_and_leaves_nothing(short_folder):
    result = subprocess.run(
        [str(ROOT / "scripts" / "demo"), "--size", "2"],
        env={**os.environ, "TMPDIR": short_folder, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("  equal\n") == 8
    assert "all sha1sums are equal" in result.stdout
    assert "\033" not in result.stdout
    assert os.listdir(short_folder) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demonstration_leaves_nothing(short_folder, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "virtserial", "demo", "--size", "512"],
        env={**ENVIRONMENT, "TMPDIR": short_folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    while line and not line.startswith("host process"):
        line = process.stdout.readline()
    pids = [int(word.rstrip(",:")) for word in line.split() if word.rstrip(",:").isdigit()][:2]
    process.send_signal(number)
    process.send_signal(number)  # Who is impatient does not end the clean-up.
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "virtserial demo: interrupted\n"
    assert os.listdir(short_folder) == []
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_demonstration_without_terminals_says_so_in_a_line(short_folder):
    """As in a container without /dev/pts."""
    patched = Path(short_folder, "python")
    patched.mkdir()
    (patched / "sitecustomize.py").write_text(
        "import os\n"
        "def openpty():\n    raise FileNotFoundError(2, os.strerror(2))\n"
        "os.openpty = openpty\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "virtserial", "demo", "--size", "1"],
        env={**ENVIRONMENT, "TMPDIR": short_folder, "PYTHONPATH": f"{patched}:{ENVIRONMENT['PYTHONPATH']}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("virtserial demo: the guest end: Failed to create PTY: No such file or directory")
    assert "Traceback" not in done.stderr
    assert os.listdir(short_folder) == ["python"]


def test_attach_waits_for_its_server(tmp_path):
    ready, ready_at_child = os.pipe()
    driver = subprocess.Popen(
        [sys.executable, "-m", "virtserial", "guest", "attach", str(tmp_path / "device"), "--wait", "--as", "socket",
         "--run-dir", str(tmp_path / "run"), "--ready-fd", str(ready_at_child)],
        env=ENVIRONMENT, pass_fds=[ready_at_child], stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(ready_at_child)
    try:
        assert not select.select([ready], [], [], 0.5)[0]
        device = f"virtio-serial,socket={tmp_path}/device"
        server = start("virtserial", "serve", "-device", device, stdout=subprocess.DEVNULL)
        try:
            assert select.select([ready], [], [], 20)[0]
        finally:
            stop(server)
    finally:
        os.close(ready)
        assert stop(driver) == 0


def test_attach_that_waits_ends_at_a_signal(tmp_path):
    driver = subprocess.Popen(
        [sys.executable, "-m", "virtserial", "guest", "attach", str(tmp_path / "no"), "--wait", "--as", "socket",
         "--run-dir", str(tmp_path / "run")],
        env=ENVIRONMENT,
    )  # fmt: skip
    until(lambda: (tmp_path / "run").exists())
    assert stop(driver) in (0, -signal.SIGTERM)
