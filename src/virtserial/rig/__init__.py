"""The test rig: a real QEMU and a real Linux guest, fetched and built on first use, driven from Python.

    from virtserial.rig import Guest
    with Guest(["-device", "virtio-serial-pci", ...]) as guest:
        print(guest.run("ls /dev/virtio-ports").output)

`python3 -m virtserial.rig` opens a shell in such a guest (scripts/guest-shell).
"""

from __future__ import annotations

from virtserial.rig.cache import RigUnavailable
from virtserial.rig.channel import GuestError, GuestSession, Job, Result
from virtserial.rig.guest import Guest

__all__ = ["Guest", "GuestError", "GuestSession", "Job", "Result", "RigUnavailable"]
