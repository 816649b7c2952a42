"""Debian's libvirtd with a domain whose <emulator> is virtserial-qemu; the same with QEMU itself, as the reference."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest
from support.fetched import fetch_or_skip
from support.guests.host_end import HostEnd
from support.guests.moved_guest import make_qcow2
from support.places import SOURCE
from support.waiting import wait_until

from virtserial.rig.cache import cache_root
from virtserial.rig.cell import Cell
from virtserial.rig.image import extra_archive, guest_image
from virtserial.rig.programs import programs
from virtserial.rig.qemu import find_qemu

PACKAGES = ("libvirt-daemon", "libvirt-clients", "libvirt-daemon-driver-qemu", "python3-minimal", "python3",
            "coreutils", "dash", "bash", "util-linux", "grep", "sed")  # fmt: skip
AGENT, HOTPLUGGED = "org.qemu.guest_agent.0", "org.example.two"

# No udev here: links appear within a fifth of a second.  The agent and an echo wait for their ports.
GUEST_INIT = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs run /run
mkdir -p /dev/pts /dev/virtio-ports /var/run /var/lib/qemu-ga /var/log
mount -t devpts pts /dev/pts
modprobe virtio_pci; modprobe virtio_console
serve() {{ while :; do [ -e /dev/virtio-ports/$1 ] && $2 /dev/virtio-ports/$1; sleep 0.2; done; }}
agent() {{ qemu-ga -m virtio-serial -p $1 -t /var/run; }}
shout() {{ (exec 3<>$1; read -r line <&3 && echo "$line" | tr a-z A-Z >&3 && sleep 1); }}
serve {AGENT} agent &
serve {HOTPLUGGED} shout &
while :; do
    for port in /sys/class/virtio-ports/*; do
        name=$(cat $port/name 2>/dev/null)
        [ -n "$name" ] && ln -sf ../${{port##*/}} /dev/virtio-ports/$name
    done
    sleep 0.2
done
"""

# What libvirt does by default for a machine of its own, and cannot do in a cell.
QEMU_CONF = """
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
"""

DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initramfs}</initrd><cmdline>console=ttyS0 panic=-1 quiet</cmdline></os>
  <features><acpi/></features>
  <devices><emulator>{emulator}</emulator>
    <channel type='unix'><target type='virtio' name='{agent}'/></channel>
    <console type='pty'><target type='virtio'/></console>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>
      <target dev='vda' bus='virtio'/></disk>
    <memballoon model='none'/>
  </devices>
</domain>
"""
CHANNEL = "<channel type='unix'><source mode='bind' path='{path}'/><target type='virtio' name='{name}'/></channel>"


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


class Libvirt:
    """A libvirtd of the test's own, and virsh."""

    def __init__(self, folder, unpacked):
        self.folder = folder
        self._unpacked = unpacked
        self._uri = f"qemu+unix:///system?socket={folder}/libvirt-sock"

    def virsh(self, *words, timeout=90):
        """What virsh prints.  It must succeed."""
        done = self.try_virsh(*words, timeout=timeout)
        assert done.returncode == 0, f"virsh {words}: {done.stderr}\n{self.log()}"
        return done.stdout.strip()

    def try_virsh(self, *words, timeout=90):
        command = [*self._unpacked.command("virsh"), "-q", "-c", self._uri, *words]
        environment = {**os.environ, "LC_ALL": "C", "HOME": str(self.folder)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)

    def agent(self, domain, command, **arguments):
        """What the guest's agent returns."""
        request = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(self.virsh("qemu-agent-command", domain, request, "--timeout", "20"))["return"]

    def log(self):
        files = [*self.folder.glob("*.log"), *self.folder.parent.glob("written/var/log/libvirt/qemu/*.log")]
        return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in files)


@pytest.fixture(scope="module")
def libvirt():
    unpacked = fetch_or_skip(programs, *PACKAGES)
    with tempfile.TemporaryDirectory(prefix="vs-") as name:
        folder = Path(name, "shared")
        folder.mkdir()
        files = {
            "/etc/passwd": "root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/bin/sh\n",
            "/etc/group": "root:x:0:\nkvm:x:101:\nlibvirt:x:102:\nlibvirt-qemu:x:64055:\n",
            "/etc/libvirt/libvirtd.conf": f'unix_sock_dir = "{folder}"\nauth_unix_rw = "none"\n'
            f'log_outputs = "3:file:{folder}/libvirtd.log"\n',
            "/etc/libvirt/qemu.conf": QEMU_CONF,
        }
        shared = [folder, SOURCE, cache_root(), *qemu_s_folder()]
        with Cell(unpacked.root, Path(name), shared, files) as cell:
            daemon = fetch_or_skip(cell.start, ["/usr/sbin/libvirtd"], folder / "daemon.log")
            libvirt = Libvirt(folder, unpacked)
            try:
                wait_until(lambda: libvirt.try_virsh("list").returncode == 0, 60, "no libvirtd")
            except AssertionError as error:
                error.add_note(f"{daemon.poll()}: {libvirt.try_virsh('list').stderr}\n{libvirt.log()}")
                raise
            yield libvirt


def qemu_s_folder():
    """Where a QEMU is that the rig did not fetch."""
    program = Path(find_qemu().command[0])
    return [] if program.is_relative_to(cache_root()) else [program.parent]


@pytest.fixture(scope="module")
def initramfs(libvirt):
    path = libvirt.folder / "initramfs"
    files = fetch_or_skip(programs, "qemu-guest-agent").guest_files("qemu-ga") | {"/init": GUEST_INIT.encode()}
    path.write_bytes(guest_image().initramfs.read_bytes() + extra_archive(files))
    return path


@pytest.fixture(scope="module")
def emulators(libvirt):
    """Programs for <emulator>: libvirt passes no environment, so what they need is written into scripts."""
    qemu = find_qemu()
    settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in qemu.environment.items())
    script(libvirt.folder / "qemu", f'{settings}exec {shlex.join(qemu.command)} "$@"\n')
    script(
        libvirt.folder / "virtserial-qemu",
        f"export PYTHONPATH={SOURCE} PYTHONDONTWRITEBYTECODE=1 VIRTSERIAL_QEMU={libvirt.folder}/qemu\n"
        'exec /usr/bin/python3 -m virtserial.cli.qemu "$@"\n',
    )
    return libvirt.folder


DOMAINS = [
    pytest.param(("qemu", "q35"), id="qemu-q35"),
    pytest.param(("virtserial-qemu", "q35"), id="virtserial-qemu-q35"),
    pytest.param(("virtserial-qemu", "pc"), id="virtserial-qemu-pc", marks=pytest.mark.slow),
]


def wait_for_agent(libvirt, domain, seconds=90):
    ping = ("qemu-agent-command", domain, '{"execute":"guest-ping"}', "--timeout", "5")
    wait_until(lambda: libvirt.try_virsh(*ping).returncode == 0, seconds, "the agent does not answer")


@pytest.fixture(scope="module", params=DOMAINS)
def domain(request, libvirt, emulators, initramfs):
    """A running domain, whose agent answers; destroyed afterwards."""
    emulator, machine = request.param
    name = f"{emulator}-{machine}"
    xml = libvirt.folder / f"{name}.xml"
    disk = libvirt.folder / f"{name}.qcow2"
    make_qcow2(disk, 64 << 20)
    xml.write_text(
        DOMAIN.format(name=name, machine=machine, kernel=guest_image().kernel, initramfs=initramfs, agent=AGENT,
                      emulator=emulators / emulator, disk=disk)
    )  # fmt: skip
    libvirt.virsh("create", str(xml))
    wait_for_agent(libvirt, name)
    yield name
    libvirt.virsh("destroy", name)
    assert libvirt.virsh("list", "--name", "--all") == ""
    wait_until(lambda: not processes_of(name), 20, f"processes are left: {processes_of(name)}")


def processes_of(domain):
    """Command lines that have the domain's name as libvirt gives it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"guest={domain},debug-threads=on".encode() in words:
            found.append((int(entry.name), words[:4]))
    return found


def run_in_guest(libvirt, domain, command):
    """The output of a shell command, by way of the agent."""
    pid = libvirt.agent(domain, "guest-exec", path="/bin/sh", arg=["-c", command], **{"capture-output": True})["pid"]
    status = wait_until(lambda: (s := libvirt.agent(domain, "guest-exec-status", pid=pid))["exited"] and s)
    return base64.b64decode(status.get("out-data", "")).decode()


def test_the_agent_s_channel_is_connected(libvirt, domain):
    assert f"name='{AGENT}' state='connected'" in libvirt.virsh("dumpxml", domain)
    assert run_in_guest(libvirt, domain, "echo $((6 * 7))") == "42\n"


def test_a_channel_is_hot_plugged_used_and_unplugged(libvirt, domain, tmp_path):
    path = libvirt.folder / f"{domain}.two"
    xml = tmp_path / "channel.xml"
    xml.write_text(CHANNEL.format(path=path, name=HOTPLUGGED))
    for _ in range(2):
        libvirt.virsh("attach-device", domain, str(xml))
        end = HostEnd(str(path))
        end.send(b"louder\n")
        assert end.receive_until(b"\n", 30) == b"LOUDER\n"
        assert f"name='{HOTPLUGGED}' state='connected'" in libvirt.virsh("dumpxml", domain)
        end.close()
        libvirt.virsh("detach-device", domain, str(xml))
        assert HOTPLUGGED not in libvirt.virsh("dumpxml", domain)
        wait_until(
            lambda: HOTPLUGGED not in run_in_guest(libvirt, domain, "cat /sys/class/virtio-ports/*/name"), 20
        )


def test_the_console_is_a_pty(libvirt, domain):
    terminal = os.open(libvirt.virsh("ttyconsole", domain), os.O_RDWR | os.O_NOCTTY)
    try:
        run_in_guest(libvirt, domain, "echo hello from the guest >/dev/hvc0")
        seen = b""
        while b"hello from the guest" not in seen:
            seen += os.read(terminal, 4096)
    finally:
        os.close(terminal)


def test_suspend_resume_and_the_human_monitor(libvirt, domain):
    libvirt.virsh("suspend", domain)
    assert libvirt.virsh("domstate", domain) == "paused"
    assert "paused" in libvirt.virsh("qemu-monitor-command", domain, "--hmp", "info status")
    libvirt.virsh("resume", domain)
    assert run_in_guest(libvirt, domain, "echo still here") == "still here\n"
    assert "charchannel0" in libvirt.virsh("qemu-monitor-command", domain, "--hmp", "info chardev")


def test_libvirtd_knows_the_agent_s_state_after_a_reset(libvirt, domain):
    libvirt.virsh("reset", domain)
    wait_for_agent(libvirt, domain)
    assert run_in_guest(libvirt, domain, "echo again") == "again\n"


def remember(libvirt, domain):
    """Write into the guest's memory what a new boot would not have."""
    run_in_guest(libvirt, domain, "echo the same guest >/run/remembered")


def assert_remembered(libvirt, domain):
    wait_for_agent(libvirt, domain)
    assert run_in_guest(libvirt, domain, "cat /run/remembered") == "the same guest\n"


def migrate(libvirt, *words):
    """What virsh prints of a command that has QEMU migrate, with whichever emulator."""
    done = libvirt.try_virsh(*words)
    if "Parameter 'detach' is unexpected" in done.stderr:
        pytest.skip("this libvirt says detach=true to migrate, which this QEMU has no more")
    assert done.returncode == 0, f"virsh {words}: {done.stderr}\n{libvirt.log()}"


def test_save_and_restore(libvirt, domain):
    path = libvirt.folder / f"{domain}.saved"
    remember(libvirt, domain)
    migrate(libvirt, "save", domain, str(path))
    assert domain not in libvirt.virsh("list", "--name")
    libvirt.virsh("restore", str(path))
    assert_remembered(libvirt, domain)
    path.unlink()


def test_managed_save(libvirt, domain):
    path = libvirt.folder / f"{domain}.defined"
    path.write_text(libvirt.virsh("dumpxml", "--inactive", domain))
    libvirt.virsh("define", str(path))
    try:
        remember(libvirt, domain)
        migrate(libvirt, "managedsave", domain)
        assert libvirt.virsh("domstate", domain) == "shut off"
        libvirt.virsh("start", domain)
        assert_remembered(libvirt, domain)
    finally:
        libvirt.virsh("undefine", domain)


def test_a_snapshot_with_memory(libvirt, domain):
    remember(libvirt, domain)
    libvirt.virsh("snapshot-create-as", domain, "one")
    run_in_guest(libvirt, domain, "rm /run/remembered")
    libvirt.virsh("snapshot-revert", domain, "one")
    assert_remembered(libvirt, domain)
    libvirt.virsh("snapshot-delete", domain, "one")


@pytest.mark.parametrize("form", [["--memory-only"], []], ids=["memory-only", "by migration"])
def test_dump_of_a_domain_that_goes_on(libvirt, domain, form):
    path = libvirt.folder / f"{domain}.dump"
    remember(libvirt, domain)
    migrate(libvirt, "dump", domain, str(path), *form)
    assert path.stat().st_size > 1 << 20
    assert_remembered(libvirt, domain)
    path.unlink()
