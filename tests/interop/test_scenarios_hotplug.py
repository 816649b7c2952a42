"""tp-qemu's scenarios of controllers, ports and chardevs that come and go (docs/tp-qemu.md)."""

from __future__ import annotations

import os
import threading
import time

import pytest
from support.guests.host_end import HostEnd
from support.guests.load import Drain
from support.guests.plugging import unix_server
from support.guests.scenario import (
    PLUGGABLE,
    machine,
    opened_session,
    plug_port,
    port_is_gone,
    transfer,
    unplug,
    unplug_port,
)
from support.rounds import rounds
from support.waiting import wait_until

from virtserial.monitor.qmp import QmpError

BUS = "hot0.0"


@pytest.fixture(scope="module")
def guest(starter, starter_folder):
    """A machine with a console and a port from the start, and root ports for more."""
    options = [*PLUGGABLE, "-device", "virtio-serial-pci,id=ser0"]
    options += ["-chardev", f"pty,id=con,path={starter_folder}/console"]
    options += ["-device", "virtconsole,chardev=con,bus=ser0.0,id=con0"]
    options += ["-chardev", f"socket,id=stay,path={starter_folder}/stay,server=on,wait=off"]
    options += ["-device", "virtserialport,id=stay,name=stay,chardev=stay,bus=ser0.0"]
    with machine(starter, options) as guest:
        yield guest


@pytest.fixture
def monitor(guest):
    guest.monitor.events.clear()
    return guest.monitor


def plug_controller(monitor, number=0, **properties):
    monitor("device_add", driver="virtio-serial-pci", id=f"hot{number}", bus=f"rp{number + 1}", **properties)


def plug_again(monitor, name):
    """Plug a port into the chardev that it had."""
    monitor("device_add", driver="virtserialport", id=name, name=name, bus="ser0.0", chardev=f"chr-{name}")


def refusal(monitor, command, **arguments):
    with pytest.raises(QmpError) as refused:
        monitor(command, **arguments)
    return str(refused.value)


def test_port_and_controller_are_plugged_used_and_unplugged(guest, monitor, starter_folder):
    """hotplug_port_pci, without_chardev, repeat_pci_in_loop: with a number that is taken, and again and again."""
    for _ in range(rounds(2, 3)):
        plug_controller(monitor)
        plug_port(monitor, "hot.one", f"{starter_folder}/one", BUS)
        monitor("chardev-add", id="chr-hot.two", backend={"type": "null", "data": {}})
        assert "A port already exists at id 1" in refusal(
            monitor, "device_add", driver="virtserialport", id="hot.two", bus=BUS, nr=1, chardev="chr-hot.two"
        )
        monitor("chardev-remove", id="chr-hot.two")
        plug_port(monitor, "hot.two", f"{starter_folder}/two", BUS, nr=2)
        transfer(guest, {"hot.one": f"{starter_folder}/one", "hot.two": f"{starter_folder}/two"})
        for name in ("hot.one", "hot.two"):
            unplug_port(monitor, name)
        unplug(monitor, "hot0")
    transfer(guest, {"stay": f"{starter_folder}/stay"})


def test_controller_comes_and_goes_again_and_again(guest, monitor):
    """hotplug_virtio_pci."""
    for _ in range(rounds(5, 10)):
        plug_controller(monitor)
        unplug(monitor, "hot0")
    guest.check("ls /sys/bus/virtio/devices | wc -l | grep -qx 1")


def test_as_many_ports_as_a_controller_has(guest, monitor, starter_folder):
    """max_chardevs, hotplug_existed_port_pci: 31 chardevs, 30 ports, a second of each refused; all work, all go."""
    plug_controller(monitor)
    sockets = {f"hot.{n}": f"{starter_folder}/hot.{n}" for n in range(1, 31)}
    for name, path in sockets.items():
        plug_port(monitor, name, path, BUS)
    monitor("chardev-add", id="spare", backend={"type": "null", "data": {}})
    assert "Out-of-range port id specified, max. allowed: 30" in refusal(
        monitor, "device_add", driver="virtserialport", bus=BUS, chardev="spare"
    )
    for driver, device, bus in (("virtserialport", "hot.1", BUS), ("virtio-serial-pci", "hot0", "rp2")):
        assert "Duplicate" in refusal(monitor, "device_add", driver=driver, id=device, bus=bus)
    assert "already exists" in refusal(monitor, "chardev-add", id="spare", backend={"type": "null", "data": {}})
    some = {name: sockets[name] for name in list(sockets)[::6]}
    transfer(guest, some)
    for name in sockets:
        unplug_port(monitor, name)
    monitor("chardev-remove", id="spare")
    unplug(monitor, "hot0")


def test_chardevs_of_every_kind(monitor, starter_folder):
    """hotplug_various_chardev."""
    inet = {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}
    kinds = {
        "unix": unix_server(f"{starter_folder}/kind"),
        "tcp": {"type": "socket", "data": {"addr": inet, "server": True, "wait": False}},
        "pty": {"type": "pty", "data": {}},
        "null": {"type": "null", "data": {}},
        "file": {"type": "file", "data": {"out": f"{starter_folder}/kind.out"}},
        "ringbuf": {"type": "ringbuf", "data": {"size": 2048}},
    }
    for kind, backend in kinds.items():
        answer = monitor("chardev-add", id=f"kind-{kind}", backend=backend)
        assert ("pty" in answer) == (kind == "pty")
    monitor("ringbuf-write", device="kind-ringbuf", data="adcdefgh", format="utf8")
    assert monitor("ringbuf-read", device="kind-ringbuf", size=1000, format="utf8") == "adcdefgh"
    assert {f"kind-{kind}" for kind in kinds} <= {each["label"] for each in monitor("query-chardev")}
    for kind in kinds:
        monitor("chardev-remove", id=f"kind-{kind}")
    assert "kind-" not in str(monitor("query-chardev"))


def test_tcp_chardev_finds_a_port_that_is_free(monitor):
    """chardev_free_port: to=."""

    def add(name, port):
        address = {"host": "127.0.0.1", "port": str(port), "to": 65000}
        backend = {"type": "socket", "data": {"addr": {"type": "inet", "data": address}, "server": True, "wait": False}}
        monitor("chardev-add", id=name, backend=backend)
        (chardev,) = [each for each in monitor("query-chardev") if each["label"] == name]
        return int(chardev["filename"].removesuffix(",server=on").rpartition(":")[2])

    first = add("free1", 21000 + os.getpid() % 20000)
    assert add("free2", first) > first
    for name in ("free1", "free2"):
        monitor("chardev-remove", id=name)


def test_port_is_unplugged_while_it_carries_data_and_comes_back(guest, monitor, starter_folder):
    """unplug_port with_bg_test, test_hotplug's "under load", replug_send and replug_recv: again and again."""
    path = f"{starter_folder}/busy"
    for _ in range(rounds(2, 5)):
        plug_port(monitor, "busy", path)
        guest.check("for n in $(seq 1200); do [ -e /dev/virtio-ports/busy ] && exit; sleep 0.05; done; exit 1")
        with Drain(path) as drain:
            jobs = [guest.start("exec cat /dev/zero >/dev/virtio-ports/busy")]
            wait_until(lambda drain=drain: drain.received > 100_000, 30, "no data comes")
            unplug(monitor, "busy")
            assert jobs[0].wait(30).status != 0
        plug_again(monitor, "busy")
        transfer(guest, {"busy": path})
        unplug_port(monitor, "busy")


def test_chardev_in_use_is_not_removed(monitor, starter_folder):
    """unplug_chardev."""
    assert refusal(monitor, "chardev-remove", id="stay") == "Chardev 'stay' is busy"


def test_what_was_on_its_way_to_the_host_is_gone_with_the_port(guest, monitor, starter_folder):
    """remove_pending_watches: a host that does not read while the guest sends, then the port goes."""
    plug_port(monitor, "watched", f"{starter_folder}/watched")
    end = HostEnd(f"{starter_folder}/watched")
    session = opened_session(guest)
    session("fd = open_port('watched'); until(lambda: 'OUT' in events(fd)); fill(fd)")
    unplug(monitor, "watched")
    session("os.close(fd)")
    session.close()
    end.socket.settimeout(0.5)
    assert end.socket.recv(4096)
    end.close()
    monitor("chardev-remove", id="chr-watched")
    transfer(guest, {"stay": f"{starter_folder}/stay"})


def test_one_port_comes_and_goes_a_hundred_times(guest, monitor, starter_folder):
    """test_hotplug's last part."""
    for _ in range(100):
        plug_port(monitor, "hundred", f"{starter_folder}/hundred")
        unplug_port(monitor, "hundred")
    plug_port(monitor, "hundred", f"{starter_folder}/hundred")
    transfer(guest, {"hundred": f"{starter_folder}/hundred"})
    unplug_port(monitor, "hundred")
    port_is_gone(guest, "hundred")


def test_three_controllers_with_ten_ports_each(guest, monitor, starter_folder):
    """test_hotplug's first part: ports on controllers that were plugged in one after the other."""
    for number in range(3):
        plug_controller(monitor, number)
        for port in range(10):
            plug_port(monitor, f"many.{number}.{port}", f"{starter_folder}/many.{number}.{port}", f"hot{number}.0")
    last = {f"many.{number}.9": f"{starter_folder}/many.{number}.9" for number in range(3)}
    transfer(guest, last)
    for number in range(3):
        for port in range(10):
            unplug_port(monitor, f"many.{number}.{port}")
        unplug(monitor, f"hot{number}")


def test_driver_is_unloaded_while_ports_come_and_go(guest, monitor, starter_folder):
    """unplug_port, rmmod: the module goes, the port goes and comes, the module comes."""
    for _ in range(rounds(1, 3)):
        plug_port(monitor, "modular", f"{starter_folder}/modular")
        transfer(guest, {"modular": f"{starter_folder}/modular"})
        guest.check("rmmod virtio_console")
        unplug(monitor, "modular")
        plug_again(monitor, "modular")
        guest.check("modprobe virtio_console")
        transfer(guest, {"modular": f"{starter_folder}/modular", "stay": f"{starter_folder}/stay"})
        unplug_port(monitor, "modular")


@pytest.mark.slow
def test_transfers_go_on_over_a_stop(guest, monitor, starter_folder):
    """interrupted_transfer stop_cont, virtio_serial_stop_continue."""
    failed = []

    def move():
        try:
            transfer(guest, {"stay": f"{starter_folder}/stay"}, mib=16)
        except BaseException as error:  # whatever it is, the test has to hear of it
            failed.append(error)

    thread = threading.Thread(target=move)
    thread.start()
    while thread.is_alive():
        for pause in (0, 0.05, 0.5):
            monitor("stop")
            time.sleep(pause)
            monitor("cont")
            time.sleep(0.1)
    thread.join()
    assert not failed, failed


@pytest.mark.slow
@pytest.mark.parametrize("method", ["shell", "system_reset"])
def test_restarts_with_ports_plugged_and_unplugged(guest, monitor, starter_folder, method):
    """hotplug_port_pci with_reboot and with_system_reset, unplugged_restart, stressed_restart."""

    def restart():
        if method == "shell":
            guest.reboot()
            return
        before = guest.channel.boot_id
        monitor("system_reset")
        guest.channel.wait_for_boot(180, before)

    plug_port(monitor, "over.reboot", f"{starter_folder}/over")
    transfer(guest, {"over.reboot": f"{starter_folder}/over"})
    with Drain(f"{starter_folder}/stay") as drain:
        guest.start("exec cat /dev/zero >/dev/virtio-ports/stay")
        wait_until(lambda: drain.received > 100_000, 30, "no data comes")
        restart()
    transfer(guest, {"over.reboot": f"{starter_folder}/over", "stay": f"{starter_folder}/stay"})
    unplug_port(monitor, "over.reboot")
    restart()
    transfer(guest, {"stay": f"{starter_folder}/stay"})


def test_controller_goes_with_what_is_on_it(guest, monitor, starter_folder):
    """with_console_negative: a controller goes with the console and the port that are on it."""
    plug_controller(monitor)
    monitor("chardev-add", id="con2", backend={"type": "pty", "data": {}})
    monitor("device_add", driver="virtconsole", id="con2", bus=BUS, chardev="con2")
    plug_port(monitor, "beside", f"{starter_folder}/beside", BUS)
    transfer(guest, {"beside": f"{starter_folder}/beside"})
    unplug(monitor, "hot0")
    transfer(guest, {"stay": f"{starter_folder}/stay"})
    for chardev in ("con2", "chr-beside"):
        monitor("chardev-remove", id=chardev)
