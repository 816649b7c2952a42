"""A machine with virtio-serial that is told in QEMU's words alone: started by QEMU, or by virtserial-qemu in its place.

The scenarios are those of tp-qemu, the test suite that QEMU's own device is accepted by (docs/tp-qemu.md).  One monitor
speaks of everything, for the one as for the other.
"""

from __future__ import annotations

from contextlib import contextmanager

from support.guests.dropin_guest import DropinGuest
from support.guests.exchange import exchange
from support.guests.guest_side import PORT_HELPERS
from support.guests.plugging import unix_server
from support.waiting import wait_until

from virtserial.rig import Guest

STARTERS = ("qemu", "virtserial-qemu")
# Root ports that controllers can be plugged into at run time.
PLUGGABLE = [word for n in range(1, 6) for word in ("-device", f"pcie-root-port,id=rp{n},slot={n},chassis={n}")]


@contextmanager
def machine(starter, options):
    """A booted guest with these devices; `options` are QEMU's."""
    words = ["-machine", "q35", "-m", "256M", "-nodefaults", *options]
    with Guest(options) if starter == "qemu" else DropinGuest(words) as guest:
        yield guest


def opened_session(guest):
    """A Python session in the guest with the ports' helpers."""
    session = guest.session()
    session(PORT_HELPERS)
    return session


def transfer(guest, sockets, mib=1):
    """Checked bytes each way over every port at once; the ports may be just about to come."""
    for name in sockets:
        guest.check(f"for n in $(seq 1200); do [ -e /dev/virtio-ports/{name} ] && exit; sleep 0.05; done; exit 1")
    exchange(guest, sockets, mib=mib)


def plug_port(monitor, name, path, bus="ser0.0", **properties):
    """Plug in a listening socket and a port on it, both of that name."""
    monitor("chardev-add", id=f"chr-{name}", backend=unix_server(path))
    monitor("device_add", driver="virtserialport", id=name, name=name, bus=bus, chardev=f"chr-{name}", **properties)


def unplug(monitor, device, timeout=60):
    """Unplug a device and wait until it is gone."""
    monitor("device_del", id=device)
    while monitor.wait_event("DEVICE_DELETED", timeout)["data"].get("device") != device:
        pass


def unplug_port(monitor, name):
    """Unplug what plug_port has plugged in."""
    unplug(monitor, name)
    monitor("chardev-remove", id=f"chr-{name}")


def port_is_gone(guest, name):
    """Wait until the guest has no port of that name."""
    wait_until(
        lambda: guest.run(f"grep -qx {name} /sys/class/virtio-ports/*/name").status, complaint=f"{name} is still there"
    )
