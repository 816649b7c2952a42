"""The size of a console's window, which QEMU's own device cannot tell (it has no VIRTIO_CONSOLE_F_SIZE)."""

import pytest
from support.guests.host_device import VirtserialDevice

from virtserial.rig.guest import Guest

pytestmark = pytest.mark.qemu


def test_consoles_have_the_size_they_were_given():
    options = ["-device", "virtio-serial,id=ser0"]
    for number, size in enumerate(("cols=100,rows=30", "cols=212,rows=65")):
        options += ["-chardev", f"ringbuf,id=c{number}", "-device", f"virtconsole,chardev=c{number},{size}"]
    with VirtserialDevice().attach(options) as attached, Guest(attached.arguments) as guest:
        # A guest that boots fast is up before its driver has heard of the second console.
        for console, size in ("hvc0", "30 100"), ("hvc1", "65 212"):
            guest.check(f'until [ "$(stty -F /dev/{console} size 2>/dev/null)" = "{size}" ]; do sleep 0.1; done')
