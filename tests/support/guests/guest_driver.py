"""The guest's driver under test, behind one face: Linux's virtio_console, or ours as a process with CUSE and VFIO.

Ours runs in a guest that has not loaded virtio_console, behind an IOMMU, on whatever device the host has.
"""

from __future__ import annotations

from virtserial.rig.guest_package import PROGRAM, package_files

VIRTIO_CONSOLE = "0x1af4 0x1043"


class LinuxDriver:
    """virtio_console.ko with the rig's agent as udev."""

    kind = "linux"
    machine: dict[str, object] = {}  # noqa: RUF012
    names = "/sys/class/virtio-ports"

    @staticmethod
    def device_options(options):
        """QEMU's options for a device that this driver can use."""
        return options

    @staticmethod
    def start(guest, ports):
        """Takes the devices into use; `ports` are the names to wait for."""


class LegacyDriver(LinuxDriver):
    """The same by the legacy interface, as kernels before 3.19 have it."""

    machine = {"append": "virtio_pci.force_legacy=1"}  # noqa: RUF012

    @staticmethod
    def device_options(options):
        """The same with a legacy interface, which `virtserial serve` has only where it is asked for."""
        return [
            f"{word},disable-legacy=off" if word.partition(",")[0] in ("virtio-serial", "virtio-serial-pci") else word
            for word in options
        ]

    @staticmethod
    def start(guest, ports):
        """Holds that it is the legacy interface."""
        assert "virtio-pci-legacy" in guest.check("cat /proc/ioports")


class PackedDriver(LinuxDriver):
    """The same with packed rings."""

    @staticmethod
    def device_options(options):
        """The same with VIRTIO_F_RING_PACKED, which no device offers unless asked."""
        return [
            f"{word},packed=on" if word.partition(",")[0] in ("virtio-serial", "virtio-serial-pci") else word
            for word in options
        ]

    @staticmethod
    def start(guest, ports):
        """Holds that packed rings were negotiated: bit 34."""
        features = guest.check("cat /sys/bus/virtio/drivers/virtio_console/virtio*/features").split()
        assert features
        assert all(bits[34] == "1" for bits in features)


class CuseDriver:
    """`virtserial guest attach` on every virtio console device, by VFIO, its ports as character devices."""

    kind = "cuse"
    names = "/run/virtserial/class/virtio-ports"

    def __init__(self, shape="cuse", extra=""):
        self.extra = f"--as {shape} {extra}"

    @property
    def machine(self):
        """What the guest must have."""
        modules = "virtio_pci,vfio-pci,vfio_iommu_type1,cuse"
        return {"iommu": True, "append": f"rig.modules={modules}", "files": package_files()}

    @staticmethod
    def device_options(options):
        """The same with VIRTIO_F_ACCESS_PLATFORM: without it VFIO refuses a device."""
        return [
            f"{word},iommu_platform=on" if word.partition(",")[0] in ("virtio-serial", "virtio-serial-pci") else word
            for word in options
        ]

    def start(self, guest, ports):
        """Binds and attaches all of them; waits for the ports' links."""
        # A console is a pseudo-terminal: where root may log in must say so.
        guest.check("for n in $(seq 0 9); do echo pts/$n; done >>/etc/securetty")
        addresses = " ".join(console_functions(guest))
        guest.check(f"{PROGRAM} guest bind {addresses}")
        self.attach(guest, addresses)
        there = wait_for("[ -e /dev/virtio-ports/$name ]")
        guest.check(f"for name in {' '.join(ports)}; do {there}; done", timeout=120)

    def attach(self, guest, addresses, log="/tmp/attach.log"):
        """Starts the driver's process and waits for its ready line; its process id."""
        attach = f"{PROGRAM} guest attach {addresses} {self.extra}"
        # setsid: it must outlive the shell that starts it.
        guest.check(f"rm -f {log}; setsid sh -c 'echo $$ >{log}.pid; exec {attach}' >{log} 2>&1 &")
        guest.check(f"{wait_for(f'grep -qs ^ready: {log}')} || {{ cat {log}; false; }}", timeout=120)
        return int(guest.check(f"cat {log}.pid"))


def wait_for(condition, seconds=90):
    """A shell command that waits for a condition."""
    now = "$(cut -d. -f1 /proc/uptime)"
    wait = f"until {condition}; do [ {now} -lt $end ] || break; sleep 0.2; done"
    return f"{{ end=$(({now} + {seconds})); {wait}; {condition}; }}"


def console_functions(guest):
    """The PCI addresses of all virtio console functions in a guest."""
    listing = guest.check("cd /sys/bus/pci/devices; for d in *; do echo $d $(cat $d/vendor $d/device); done")
    return [line.split()[0] for line in listing.splitlines() if line.endswith(VIRTIO_CONSOLE)]
