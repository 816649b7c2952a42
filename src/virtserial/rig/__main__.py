"""An interactive shell in the rig's guest: `python3 -m virtserial.rig [--socket PATH]... [-- qemu options]`.

The guest's serial console is this terminal (Ctrl-A X ends QEMU, Ctrl-A C is its monitor).  Without options the
machine has QEMU's own virtio-serial device with a port org.example.port, whose host end is a unix socket that is
printed at start.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

from virtserial.rig.cache import RigUnavailable
from virtserial.rig.guest import machine_arguments
from virtserial.rig.image import guest_image
from virtserial.rig.qemu import find_qemu


def vfio_user_argument(socket_path: str) -> str:
    """The value of -device that attaches a vfio-user device server's socket (QEMU >= 10.1)."""
    return json.dumps({"driver": "vfio-user-pci", "socket": {"path": socket_path, "type": "unix"}})


def main(arguments: list[str] | None = None) -> int:
    """Runs the guest until it powers off; gives QEMU's exit status."""
    parser = argparse.ArgumentParser(prog="guest-shell", description=__doc__.split("\n\n")[1])
    parser.add_argument("--socket", action="append", default=[], metavar="PATH",
                        help="attach the vfio-user device server at PATH (repeatable)")  # fmt: skip
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="the guest's memory (default: 256)")
    parser.add_argument("--smp", type=int, default=1, metavar="N", help="virtual CPUs (default: 1)")
    parser.add_argument("--iommu", action="store_true", help="put the devices behind an Intel vIOMMU")
    parser.add_argument("--append", default="", help="more words for the kernel's command line")
    parser.add_argument("qemu", nargs="*", metavar="-- qemu options", help="devices of your own")
    chosen = parser.parse_args(arguments)
    try:
        program, image = find_qemu(), guest_image()
    except RigUnavailable as error:
        print(f"guest-shell: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="virtserial-shell-") as folder:
        devices = [word for path in chosen.socket for word in ("-device", vfio_user_argument(path))] + chosen.qemu
        if not devices:
            path = os.path.join(folder, "port.sock")
            print(f"QEMU's own virtio-serial; port org.example.port is at {path}", file=sys.stderr)
            devices = ["-device", "virtio-serial-pci", "-chardev", f"socket,id=port,path={path},server=on,wait=off",
                       "-device", "virtserialport,chardev=port,name=org.example.port"]  # fmt: skip
        machine = machine_arguments(
            folder,
            memory_mib=chosen.memory,
            smp=chosen.smp,
            shared_memory=True,
            iommu=chosen.iommu,
            append=f"quiet rig.shell=ttyS0 {chosen.append}",
            initramfs=image.initramfs,
        )
        # The agent's line must exist, or the guest's process 1 ends.
        lines = ["-serial", "mon:stdio", "-serial", "null"]
        command = [*program.command, *machine, *lines, *devices]
        return subprocess.call(command, env={**os.environ, **program.environment})


if __name__ == "__main__":
    sys.exit(main())
