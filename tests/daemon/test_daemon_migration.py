"""A device that is moved from one `virtserial serve` to another while bytes flow: none is lost, none comes twice."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios

import pytest
from support.device_process import connect, controller_options, port_options
from support.embedded_guest import try_receive
from support.moving_guest import MovingGuest, TwoWayStream
from support.places import ENVIRONMENT
from support.waiting import wait_until

from virtserial.errors import PeerError
from virtserial.vfio_user.client import Client
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_ERROR as ERROR
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_RESUMING as RESUMING
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_RUNNING as RUNNING
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_STOP as STOP
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_STOP_COPY as STOP_COPY
from virtserial.vfio_user.migration_client import MigrationClient

SIZE = 600_000
pytestmark = pytest.mark.timeout(120)


def monitored(folder, name):
    """A QMP monitor at NAME.qmp."""
    return ["-qmp", f"unix:{folder}/{name}.qmp,server=on,wait=off"]


def fifo_port(folder, name="f", number=3, bus="ser0"):
    """A port whose host's end is a pair of FIFOs in the folder."""
    for end in ("in", "out"):
        path = folder / f"{name}.{end}"
        if not path.exists():
            os.mkfifo(path)
    return [
        *("-chardev", f"pipe,id={name},path={folder}/{name}"),
        *("-device", f"virtserialport,bus={bus}.0,nr={number},chardev={name},name={name}"),
    ]


@pytest.fixture
def two(start, folder):
    """Two processes with a controller each, one.sock and two.sock, of the same ports; the host's end is shared."""
    for name in ("one", "two"):
        start(*controller_options(folder, name), *fifo_port(folder, bus=name), *monitored(folder, name))
    return folder


def virtserial(*words):
    return subprocess.run(
        [sys.executable, "-m", "virtserial", *map(str, words)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def stream(two):
    with MovingGuest(two / "one.sock", "f") as guest:
        stream = TwoWayStream(guest, "f", two / "f", SIZE)
        try:
            yield stream
        finally:
            stream.close()


class TestMigration:
    def test_a_stream_goes_on_exactly_while_its_device_moves_to_and_fro(self, two, stream):
        for hop, place in enumerate(["two", "one", "two", "one", "two"], 1):
            stream.run_to(hop * SIZE // 7)
            stream.guest.migrate(two / f"{place}.sock")
        stream.finish()

    def test_a_stream_goes_on_in_a_process_whose_worker_is_killed_while_it_stands_still(self, start, folder):
        one = start(*controller_options(folder, "one"), *fifo_port(folder, bus="one"))
        with MovingGuest(folder / "one.sock", "f") as guest:
            stream = TwoWayStream(guest, "f", folder / "f", SIZE)
            try:
                stream.run_to(SIZE // 3)
                guest.migration.state = STOP
                wait_until(one.worker_sleeps)
                one.wait_for_new_worker(one.kill_worker())
                assert guest.migration.state == STOP
                guest.migration.state = RUNNING
                stream.finish()
            finally:
                stream.close()

    def test_what_a_port_keeps_for_late_clients_moves_along(self, start, folder):
        devices = [
            start(
                *controller_options(folder, name),
                *("-chardev", f"socket,id=c,path={folder}/{name},server=on,wait=off,clients=2,backlog=64k"),
                *("-device", f"virtserialport,bus={name}.0,nr=3,chardev=c,name=a"),
            )
            for name in ("one", "two")
        ]
        said = os.urandom(100_000)

        def check_backlog(name, expected):
            """A client that comes now gets at least these last bytes; it may come before the device has read them."""
            with connect(folder / name) as client:
                client.setblocking(False)
                came = bytearray()
                guest.run_until(lambda: came.extend(try_receive(client)) or came.endswith(expected[-100:]), 40)
                assert said[: said.index(expected) + len(expected)].endswith(came)
                assert len(came) >= len(expected)

        with MovingGuest(folder / "one.sock", "a") as guest:
            port = guest.open("a").port
            guest.run_until(lambda: port.host_connected)
            assert port.write(said[:50_000]) == 50_000
            check_backlog("one", said[:50_000])
            guest.migrate(folder / "two.sock")
            check_backlog("two", said[:50_000])
            assert port.write(said[50_000:]) == 50_000
            check_backlog("two", said[-(64 << 10) :])
        for device in devices:
            assert "internal error" not in device.log

    def test_a_device_that_stands_still_moves_nothing(self, stream):
        stream.run_to(SIZE // 10)
        guest, port = stream.guest, stream.received.port
        guest.migration.state = STOP
        stream.empty_host_end()
        before = guest.memory_copy()
        for _ in range(20):
            guest.function.notify(2 * port.number + 2)
            guest.function.notify(2 * port.number + 3)
            assert guest.migration.state == STOP
        assert guest.memory_copy() == before
        assert not stream.empty_host_end()
        guest.migration.state = RUNNING
        stream.finish()

    def test_migration_data_is_refused_where_the_ports_are_others(self, two, start, folder, stream):
        ports = [*fifo_port(folder, bus="other"), *port_options(folder, "x", 5, "other")]
        other = start(*controller_options(folder, "other"), *ports)
        guest = stream.guest
        guest.migration.state = STOP_COPY
        data = guest.migration.read_data()
        with guest.connect(folder / "other.sock") as there:
            target = MigrationClient(there)
            target.state = RESUMING
            target.write_data(data)
            with pytest.raises(PeerError):
                target.state = RUNNING
            assert target.state == ERROR
            other.wait_for_log("port 5 is not plugged in there and a serial port named 'x' here")
            with pytest.raises(PeerError):
                target.state = RUNNING
            there.reset()
            assert target.state == RUNNING
        # Nothing has happened to the guest: it goes on where it is.
        guest.migration.state = RUNNING
        stream.finish()

    def test_a_half_given_state_is_refused(self, two, stream):
        stream.guest.migration.state = STOP_COPY
        data = stream.guest.migration.read_data()
        with Client(two / "two.sock") as there:
            target = MigrationClient(there)
            target.state = RESUMING
            target.write_data(data[: len(data) // 2])
            with pytest.raises(PeerError):
                target.state = STOP
            assert target.state == ERROR

    def test_more_data_than_any_state_has_is_refused_before_it_is_kept(self, two):
        with Client(two / "two.sock") as there:
            target = MigrationClient(there)
            target.state = RESUMING
            with pytest.raises(PeerError, match="File too large"):
                target.write_data(bytes(8 << 20))


class TestDirtyPages:
    def test_every_page_the_device_changes_is_reported_once(self, start, folder):
        start(*controller_options(folder), *port_options(folder, "a", 1))
        with MovingGuest(folder / "ser0.sock", "a") as guest, connect(folder / "a") as host:
            received = guest.open("a")
            guest.run_until(lambda: received.port.host_connected)
            host.sendall(bytes(10_000))
            guest.run_until(lambda: len(received.data) == 10_000)
            assert guest.migration.start_logging() == 4096
            spans = [(region.iova, region.size) for region in guest.memory.regions]
            before = guest.memory_copy()
            host.sendall(os.urandom(150_000))
            # The driver does nothing meanwhile: what changes is the device's doing.
            wait_until(lambda: host_is_read(host))

            def changed():
                now = guest.memory_copy()
                return {page for page, content in now.items() if content != before[page]}

            pages = wait_until(changed)
            dirty = {page for span in spans for page in guest.migration.dirty_pages(*span)}
            assert changed() <= dirty
            assert len(dirty - pages) < 10
            assert not [page for span in spans for page in guest.migration.dirty_pages(*span)]
            coarse = guest.migration.dirty_pages
            guest.migration.stop_logging()
            with pytest.raises(PeerError):
                list(coarse(*spans[0]))
            guest.run_until(lambda: len(received.data) == 160_000)

    def test_after_the_death_of_a_worker_everything_it_may_have_written_is_dirty(self, start, folder):
        one = start(*controller_options(folder), *port_options(folder, "a", 1))
        with MovingGuest(folder / "ser0.sock", "a") as guest:
            guest.migration.start_logging()
            wait_until(one.worker_sleeps)
            one.wait_for_new_worker(one.kill_worker())
            region = guest.memory.regions[0]
            assert len(list(guest.migration.dirty_pages(region.iova, region.size))) == region.size // 4096


def host_is_read(host):
    """Whether nothing of what was sent waits in the socket (SIOCOUTQ)."""
    return not struct.unpack("i", fcntl.ioctl(host, termios.TIOCOUTQ, bytes(4)))[0]


class TestFiles:
    def test_a_stream_goes_on_exactly_in_another_process_from_a_file(self, two, stream):
        guest, state = stream.guest, two / "state"
        for hop, (here, there) in enumerate([("one", "two"), ("two", "one")], 1):
            stream.run_to(hop * SIZE // 3)
            saved = virtserial("save", "--monitor", two / f"{here}.qmp", "--id", here, state)
            assert (saved.returncode, saved.stdout, saved.stderr) == (0, "", "")
            restored = virtserial("restore", "--monitor", two / f"{there}.qmp", state)
            assert (restored.returncode, restored.stdout, restored.stderr) == (0, "", "")
            guest.settle(guest.connect(two / f"{there}.sock"))
        stream.finish()

    def test_a_controller_that_was_saved_stands_still_until_it_may_go_on(self, two, stream):
        stream.run_to(SIZE // 5)
        for _ in range(3):
            assert virtserial("save", "--monitor", two / "one.qmp", "--continue", two / "state").returncode == 0
            stream.run_to(len(stream.taken) + SIZE // 10)
        stream.finish()

    def test_a_state_of_other_ports_is_refused_in_one_line(self, two, start, stream):
        start(*controller_options(two, "other"), *port_options(two, "x", 5, "other"), *monitored(two, "other"))
        assert virtserial("save", "--monitor", two / "one.qmp", two / "state").returncode == 0
        refused = virtserial("restore", "--monitor", two / "other.qmp", two / "state")
        assert refused.returncode == 1
        assert refused.stderr == (
            "virtserial: saved state: port 3 is a serial port named 'f' there and not plugged in here\n"
        )

    def test_a_controller_in_use_takes_no_state(self, two, stream):
        assert virtserial("save", "--monitor", two / "one.qmp", "--continue", two / "state").returncode == 0
        refused = virtserial("restore", "--monitor", two / "one.qmp", two / "state")
        assert refused.returncode == 1
        assert "is used by a guest's driver" in refused.stderr
        stream.finish()

    @pytest.mark.parametrize("content", [b"", b"nonsense" * 100, b"vtserial" + bytes(16)])
    def test_a_file_that_is_no_state_is_refused_in_one_line(self, two, content):
        (two / "state").write_bytes(content)
        refused = virtserial("restore", "--monitor", two / "two.qmp", two / "state")
        assert refused.returncode == 1
        assert refused.stderr.startswith("virtserial: saved state: ")
        assert refused.stderr.count("\n") == 1

    def test_no_file_is_left_where_nothing_could_be_saved(self, two):
        refused = virtserial("save", "--monitor", two / "two.qmp", "--id", "nobody", two / "state")
        assert (refused.returncode, refused.stderr) == (1, "virtserial: Device 'nobody' not found\n")
        assert not list(two.glob("state*"))

    def test_something_else_than_a_file_is_refused(self, two):
        refused = virtserial("restore", "--monitor", two / "two.qmp", "/dev/null")
        assert (refused.returncode, refused.stderr) == (
            1, "virtserial: a saved state is a regular file, this is something else\n",
        )  # fmt: skip
