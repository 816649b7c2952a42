"""The driver's transport by the legacy interface: over a vfio-user socket, and on functions that lie."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest
from support.device_process import DeviceProcess, connect, controller_options, port_options
from support.driver_devices import Listening

from virtserial.console.wire import VIRTIO_ID_CONSOLE
from virtserial.driver.legacy_function import LegacyFunction
from virtserial.driver.vfio_user_device import open_vfio_user_device
from virtserial.errors import PeerError
from virtserial.loop import EventLoop
from virtserial.virtio.features import VIRTIO_F_ANY_LAYOUT, VIRTIO_F_VERSION_1


@pytest.fixture
def loop():
    loop = EventLoop()
    yield loop
    loop.close()


@pytest.fixture
def serve(folder):
    """Starts `virtserial serve` with a port `a` on a controller of these properties."""
    devices = []

    def start(properties):
        words = controller_options(folder)
        words[1] += f",{properties}"
        devices.append(DeviceProcess(folder, *words, *port_options(folder, "a", 1)))
        return devices[-1]

    yield start
    for device in devices:
        device.kill()


def run_until(loop, condition):
    for _ in range(2000):
        if condition():
            return
        loop.run_once(timeout=0.01)
    raise AssertionError("it did not come to that")


def exchange(loop, driver, host):
    run_until(loop, lambda: 1 in driver.ports and driver.ports[1].host_connected)
    port = driver.ports[1]
    port.open(Listening())
    assert port.write(b"question") == 8
    received = bytearray()

    def arrived():
        try:
            received.extend(host.recv(100))
        except BlockingIOError:
            return False
        return received == b"question"

    host.setblocking(False)
    run_until(loop, arrived)
    host.send(b"answer")
    answer = bytearray()
    run_until(loop, lambda: answer.extend(port.read(100)) or answer == b"answer")


@pytest.mark.parametrize("vectors", [0, 2, 32])
@pytest.mark.parametrize("properties", ["disable-modern=on", "disable-legacy=off"])
def test_a_driver_uses_the_legacy_interface_of_a_served_device(serve, loop, folder, properties, vectors):
    serve(f"{properties},vectors={vectors}")
    legacy = True if properties == "disable-legacy=off" else None
    driver = open_vfio_user_device(folder / "ser0.sock", loop, legacy=legacy)
    driver.start()
    assert driver.max_ports > 1
    assert not driver.features & VIRTIO_F_VERSION_1
    with connect(folder / "a") as host:
        exchange(loop, driver, host)
    driver.close()


def test_a_device_goes_from_one_interface_to_the_other_and_back(serve, loop, folder):
    serve("disable-legacy=off")
    for legacy in (True, False, True):
        driver = open_vfio_user_device(folder / "ser0.sock", loop, legacy=legacy)
        driver.start()
        assert bool(driver.features & VIRTIO_F_VERSION_1) is not legacy
        with connect(folder / "a") as host:
            exchange(loop, driver, host)
        driver.close()


def test_a_killed_worker_is_followed_by_one_that_goes_on_with_a_legacy_driver(serve, loop, folder):
    device = serve("disable-modern=on")
    driver = open_vfio_user_device(folder / "ser0.sock", loop)
    driver.start()
    with connect(folder / "a") as host:
        exchange(loop, driver, host)
        device.kill_worker()
        driver.ports[1].write(b"and another one")
        received = bytearray()

        def arrived():
            try:
                received.extend(host.recv(100))
            except BlockingIOError:
                return False
            return received == b"and another one"

        run_until(loop, arrived)
    driver.close()


def test_a_modern_device_has_no_legacy_interface(serve, loop, folder):
    serve("disable-legacy=on")
    with pytest.raises(PeerError, match="no legacy interface"):
        open_vfio_user_device(folder / "ser0.sock", loop, legacy=True)


class LyingFunction:
    """A DeviceAccess with a configuration space and a legacy header that a test writes."""

    def __init__(self, sizes=(64, 64), changing=False):
        self.space = bytearray(256)
        self.space[0:4] = struct.pack("<HH", 0x1AF4, 0x1003)
        self.sizes = sizes
        self.changing = changing
        self.selected = self.reads = 0

    def region_info(self, index):
        return SimpleNamespace(size=32)

    def region_read(self, region, offset, length):
        if region == 7:
            return bytes(self.space[offset : offset + length])
        if offset == 12:
            size = self.sizes[self.selected] if self.selected < len(self.sizes) else 0
            return size.to_bytes(2, "little")
        self.reads += 1
        return bytes([self.reads & 0xFF if self.changing else 0]) * length

    def region_write(self, region, offset, data, posted=False, more=False):
        if region == 0 and offset == 14:
            self.selected = int.from_bytes(data, "little")

    def fileno(self):
        return 0


class NoLoop:
    def watch(self, *_): ...
    def unwatch(self, *_): ...


def test_queues_are_counted_up_to_the_first_that_is_none():
    assert LegacyFunction(LyingFunction((4, 8, 0, 16)), NoLoop(), VIRTIO_ID_CONSOLE).num_queues == 2


def test_a_device_with_queues_without_end_has_1024():
    assert LegacyFunction(LyingFunction((1,) * 3000), NoLoop(), VIRTIO_ID_CONSOLE).num_queues == 1024


@pytest.mark.parametrize("size", [3, 65535])
def test_a_size_that_no_queue_has_is_refused(size):
    with pytest.raises(PeerError, match=f"queue 1 has {size} entries"):
        LegacyFunction(LyingFunction((64, size)), NoLoop(), VIRTIO_ID_CONSOLE)


def test_a_configuration_that_never_stands_still_is_given_up():
    function = LegacyFunction(LyingFunction(changing=True), NoLoop(), VIRTIO_ID_CONSOLE)
    with pytest.raises(PeerError, match="changes faster"):
        function.read_config(0, 4)


def test_the_configuration_ends_with_the_bar():
    function = LegacyFunction(LyingFunction(), NoLoop(), VIRTIO_ID_CONSOLE)
    assert function.read_config(8, 100) == bytes(4)
    assert function.read_config(12, 1) == b""
    with pytest.raises(PeerError, match="no field at 32"):
        function.write_config(12, b"\1")


def test_a_queue_that_does_not_go_where_it_is_put_is_noticed():
    function = LegacyFunction(LyingFunction(), NoLoop(), VIRTIO_ID_CONSOLE)
    with pytest.raises(PeerError, match="does not go to page 0x10"):
        function.enable_queue(0, SimpleNamespace(desc_address=0x10000))


def test_a_function_of_another_type_is_refused():
    function = LyingFunction()
    function.space[2:4] = b"\x01\x10"
    with pytest.raises(PeerError, match="1af4:1001 is not virtio"):
        LegacyFunction(function, NoLoop(), VIRTIO_ID_CONSOLE)


def test_any_layout_is_offered_by_the_legacy_interface(serve, loop, folder):
    serve("disable-modern=on")
    driver = open_vfio_user_device(folder / "ser0.sock", loop)
    assert driver._transport.read_features() & VIRTIO_F_ANY_LAYOUT
    driver.close()
