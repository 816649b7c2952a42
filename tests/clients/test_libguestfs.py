"""Debian's libguestfs with LIBGUESTFS_HV=virtserial-qemu: a tree is copied into a disk image and out again.

Its appliance is the rig's kernel with the real guestfsd; everything between that and the real guestfish goes over a
port.  The same with QEMU itself, as the reference.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from support.fetched import fetch_or_skip
from support.places import SOURCE

from virtserial.rig.cache import cache_root
from virtserial.rig.image import KERNEL_VERSION, extra_archive, guest_image
from virtserial.rig.programs import programs
from virtserial.rig.qemu import find_qemu

PACKAGES = ("libguestfs0", "guestfish", "e2fsprogs", "mount", "tar", "util-linux")
SUPERMIN = "usr/lib/x86_64-linux-gnu/guestfs/supermin.d"
PROGRAMS = ("mke2fs", "tar", "mount", "umount", "blkid", "wipefs", "e2fsck")
MODULES = ("virtio_scsi", "sd_mod", "virtio_blk", "ext4", "crc32c_generic")

APPLIANCE_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/virtio-ports /dev/disk/by-path /sysroot
ln -s /proc/self/fd /dev/fd
ln -s /proc/mounts /etc/mtab
modprobe virtio_pci; modprobe virtio_console
for module in {modules}; do insmod /modules/$module; done
for port in /sys/class/virtio-ports/*; do
    name=$(cat $port/name)
    [ -n "$name" ] && ln -s ../${{port##*/}} /dev/virtio-ports/$name
done
# Disks are named as they are found; guestfsd numbers them by their place, which udev would have put here.
for try in $(seq 100); do [ -e /sys/block/sda ] && [ -e /sys/block/sdb ] && break; sleep 0.1; done
for disk in /sys/block/sd*; do
    ln -s ../../${{disk##*/}} /dev/disk/by-path/pci-scsi-$(basename $(readlink -f $disk/device))
done
case $(cat /proc/cmdline) in *guestfs_verbose=1*) verbose=--verbose ;; esac
guestfsd $verbose
sync
reboot -f
"""


def kernel_modules(names):
    """Module files in the order to load them, from the rig's kernel package: file name -> content."""
    (base,) = (cache_root() / f"guest-packages-{KERNEL_VERSION}" / "lib/modules").iterdir()
    files = {path.stem.replace("-", "_"): path for path in base.rglob("*.ko")}
    order = {}

    def add(name):
        path = files.get(name)
        if path is None or path.name in order:
            return  # built in
        data = path.read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in depends[1].decode().split(",") if depends else ():
            add(needed.replace("-", "_"))
        order[path.name] = data

    for name in names:
        add(name)
    return order


@pytest.fixture(scope="module")
def unpacked():
    return fetch_or_skip(programs, *PACKAGES)


@pytest.fixture(scope="module")
def appliance(unpacked, module_folder):
    """A fixed appliance: kernel, initrd and a root disk that is not used."""
    place = Path(module_folder, "appliance")
    place.mkdir()
    with tarfile.open(unpacked.root / SUPERMIN / "daemon.tar.gz") as archive:
        archive.extractall(place, filter="data")
    daemon = place / "usr/sbin/guestfsd"
    modules = kernel_modules(MODULES)
    files = unpacked.guest_files(*PROGRAMS) | unpacked.guest_libraries(daemon)
    files["/usr/sbin/guestfsd"] = daemon.read_bytes()
    files["/etc/mke2fs.conf"] = (unpacked.root / "etc/mke2fs.conf").read_bytes()
    files |= {f"/modules/{name}": data for name, data in modules.items()}
    files["/init"] = APPLIANCE_INIT.format(modules=" ".join(modules)).encode()
    image = guest_image()
    (place / "kernel").symlink_to(image.kernel)
    (place / "initrd").write_bytes(image.initramfs.read_bytes() + extra_archive(files))
    # libguestfs wants to see a file system there.
    subprocess.run([*unpacked.command("mke2fs"), "-q", "-t", "ext2", place / "root", "1M"], check=True)
    (place / "README.fixed").write_text("made by a test\n")
    return place


@pytest.fixture(scope="module")
def hypervisors(module_folder, unpacked):
    """Scripts for LIBGUESTFS_HV, and a qemu-img beside them."""
    qemu = find_qemu()
    settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in qemu.environment.items())
    scripts = {
        "qemu": f'{settings}exec {shlex.join(qemu.command)} "$@"\n',
        "virtserial-qemu": f"export PYTHONPATH={SOURCE} VIRTSERIAL_QEMU={module_folder}/bin/qemu\n"
        f'exec {sys.executable} -m virtserial.cli.qemu "$@"\n',
        "qemu-img": f'exec {shlex.join(unpacked.command("qemu-img"))} "$@"\n',
    }
    place = Path(module_folder, "bin")
    place.mkdir()
    for name, text in scripts.items():
        (place / name).write_text(f"#!/bin/sh\n{text}")
        (place / name).chmod(0o755)
    return place


@pytest.fixture(params=["qemu", "virtserial-qemu"])
def guestfish(request, unpacked, appliance, hypervisors, module_folder):
    """Runs guestfish commands on a disk image."""

    def run(*commands, timeout=240):
        with tempfile.TemporaryDirectory(prefix="vs-") as scratch:
            environment = {
                **os.environ, "LC_ALL": "C", "HOME": scratch, "TMPDIR": scratch, "XDG_RUNTIME_DIR": scratch,
                "PATH": f"{hypervisors}:{os.environ['PATH']}", "LIBGUESTFS_BACKEND": "direct",
                "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg", "LIBGUESTFS_PATH": str(appliance),
                "LIBGUESTFS_HV": f"{hypervisors}/{request.param}", "LIBGUESTFS_DEBUG": "1", "LIBGUESTFS_TRACE": "1",
            }  # fmt: skip
            done = subprocess.run(
                unpacked.command("guestfish"), input="\n".join(commands) + "\n", env=environment,
                capture_output=True, text=True, errors="replace", timeout=timeout,
            )  # fmt: skip
        assert done.returncode == 0, f"{done.stderr[-6000:]}"
        return done.stdout

    run.hypervisor = request.param
    return run


def make_tree(place):
    """Files of many kinds: big, empty, many, deep, with modes, links and odd names."""
    place.mkdir()
    (place / "big").write_bytes(os.urandom(4 << 20))
    (place / "empty").touch()
    (place / "executable").write_text("#!/bin/sh\n")
    (place / "executable").chmod(0o751)
    (place / "naïve name with blanks").write_text("content")
    (place / "link").symlink_to("executable")
    deep = place / "/".join("deep" for _ in range(20))
    deep.mkdir(parents=True)
    for number in range(300):
        (deep / f"file{number}").write_bytes(os.urandom(number))


def content(place):
    """Every path below a folder with what it is."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("folder",)
        else:
            found[name] = ("file", path.stat().st_mode & 0o777, path.read_bytes())
    return found


@pytest.mark.slow
def test_a_tree_goes_in_and_comes_out(guestfish, module_folder, tmp_path):
    tree = tmp_path / "tree"
    make_tree(tree)
    disk = tmp_path / "disk"
    guestfish(
        f"sparse {disk} 64M", "run", "mkfs ext4 /dev/sda", "mount /dev/sda /", f"copy-in {tree} /", "umount-all"
    )
    out = tmp_path / "out"
    out.mkdir()
    add = f"add-drive {disk} readonly:true format:raw"
    shown = guestfish(add, "run", "mount-ro /dev/sda /", "checksum sha1 /tree/big", f"copy-out /tree {out}")
    assert content(out / "tree") == content(tree)
    assert re.search(r"^[0-9a-f]{40}$", shown, re.MULTILINE)
