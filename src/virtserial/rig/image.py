"""The guest of the rig: Debian's cloud kernel and an initramfs with busybox, agetty, Python and the agent.

Everything is Debian 12's, pinned to one kernel version.  The image is written in pure Python and cached; what a test
wants to add is appended as a second cpio archive, which the kernel unpacks over the first.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from virtserial.rig.cache import RigUnavailable, build_once
from virtserial.rig.cpio import CpioArchive
from virtserial.rig.debian import PackageSet, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KERNEL_RELEASE = "6.1.0-56-cloud-amd64"
KERNEL_VERSION = "6.1.192-2"
PROGRAMS = ("busybox-static", "util-linux", "python3.11-minimal", "libpython3.11-stdlib")
PACKAGES = PackageSet(
    release="bookworm",
    security=True,
    wanted=(f"linux-image-{KERNEL_RELEASE}={KERNEL_VERSION}", *PROGRAMS),
    fallback=("linux-image-cloud-amd64", *PROGRAMS),
)
MODULES = ("virtio_pci", "virtio_console", "vfio-pci", "vfio_iommu_type1", "fuse", "cuse")
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
LIBRARIES = ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1", "libffi.so.8")
PYTHON = "usr/lib/python3.11"
EXTENSIONS = ("_asyncio", "_contextvars", "_ctypes", "_json", "_multiprocessing", "_posixshmem", "_queue", "_typing",
              "mmap", "resource", "termios")  # fmt: skip
NOT_NEEDED = re.compile(
    r"(test|unittest/test|idlelib|lib2to3|tkinter|turtledemo|ensurepip|distutils|pydoc_data|sqlite3|curses|dbm|wsgiref"
    r"|xmlrpc|venv|lib-dynload|__pycache__|config-.*)(/|$)|turtle\.py|antigravity\.py"
    r"|encodings/(?!__init__|aliases|ascii|utf_8|latin_1|idna|cp437)"
)
ROOT_PASSWORD = "virtserial"
ROOT_PASSWORD_HASH = (
    "$6$rig$/WdM4KdHBeSTuiOwys14..Rw47is/jZosReS1fKZD9y2VOdtfQ5PNlpEHE8obbg19hC0zM9EbP8GaIOGMKysk0"
)
RIG = importlib.resources.files("virtserial.rig")
GUESTSIDE = RIG / "guestside"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A kernel and an initramfs as files."""

    kernel: Path
    initramfs: Path


@cache
def guest_image() -> GuestImage:
    """The guest's kernel and initramfs, built on first use.

    Raises:
        RigUnavailable: the packages cannot be had.
    """
    parts = [RIG / "image.py", RIG / "cpio.py", GUESTSIDE / "init", GUESTSIDE / "agent.py"]
    sources = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    folder = build_once(f"guest-{KERNEL_VERSION}-{sources[:12]}", _build)
    return GuestImage(folder / "vmlinuz", folder / "initramfs")


def extra_archive(files: Mapping[str, bytes]) -> bytes:
    """A cpio archive to append to the image: absolute guest paths to contents, each made executable."""
    archive = CpioArchive()
    for path, data in sorted(files.items()):
        archive.add_file(path.lstrip("/"), data, 0o755)
    return archive.finish()


def _build(folder: Path) -> None:
    root = build_once(f"guest-packages-{KERNEL_VERSION}", lambda target: unpack(PACKAGES, target))
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    (folder / "vmlinuz").write_bytes(kernel.read_bytes())
    (folder / "initramfs").write_bytes(_initramfs(root))


def _initramfs(root: Path) -> bytes:
    archive = CpioArchive()
    archive.add_character_device("dev/console", 5, 1)
    for mount_point in ("proc", "sys", "run", "tmp", "root"):
        archive.add_folder(mount_point)
    archive.add_file("init", (GUESTSIDE / "init").read_bytes(), 0o755)
    _add_busybox(archive, root)
    _add_modules(archive, root)
    _add_accounts(archive)
    _add_python(archive, root)
    archive.add_file("sbin/agetty", (root / "sbin/agetty").read_bytes(), 0o755)
    return archive.finish()


def _add_busybox(archive: CpioArchive, root: Path) -> None:
    busybox = root / "bin/busybox"
    archive.add_file("bin/busybox", busybox.read_bytes(), 0o755)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            archive.add_link(f"bin/{applet}", "busybox")


def _add_accounts(archive: CpioArchive) -> None:
    archive.add_file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.add_file("etc/shadow", f"root:{ROOT_PASSWORD_HASH}:19000:0:99999:7:::\n".encode(), 0o600)
    archive.add_file("etc/group", b"root:x:0:\ntty:x:5:\n")
    archive.add_file("etc/issue", b"virtserial rig \\n \\l\n")
    archive.add_file("etc/securetty", "".join(f"hvc{n}\n" for n in range(16)).encode() + b"ttyS0\n")
    archive.add_file("root/.profile", b"PS1='\\u@\\h:\\w# '\n")


def _add_python(archive: CpioArchive, root: Path) -> None:
    loader = "lib64/ld-linux-x86-64.so.2"
    archive.add_file(loader, (root / loader).read_bytes(), 0o755)
    for library in LIBRARIES:
        found = [root / folder / library for folder in LIBRARY_FOLDERS if (root / folder / library).exists()]
        archive.add_file(f"lib/x86_64-linux-gnu/{library}", found[0].read_bytes(), 0o755)
    archive.add_file("usr/bin/python3.11", (root / "usr/bin/python3.11").read_bytes(), 0o755)
    archive.add_link("usr/bin/python3", "python3.11")
    for extension in EXTENSIONS:
        path = f"{PYTHON}/lib-dynload/{extension}.cpython-311-x86_64-linux-gnu.so"
        archive.add_file(path, (root / path).read_bytes(), 0o755)
    for path, compiled in _compiled_library(root):
        archive.add_file(path, compiled)
    archive.add_file("usr/lib/rig/agent.py", (GUESTSIDE / "agent.py").read_bytes())


def _compiled_library(root: Path) -> Iterator[tuple[str, bytes]]:
    """The standard library as sourceless .pyc files, compiled by the guest's own Python: it starts twice as fast so."""
    libraries = ":".join(str(root / folder) for folder in LIBRARY_FOLDERS)
    python = [str(root / "lib64/ld-linux-x86-64.so.2"), "--library-path", libraries, str(root / "usr/bin/python3.11")]
    library = root / PYTHON
    modules = [path for path in sorted(library.rglob("*.py")) if not NOT_NEEDED.match(str(path.relative_to(library)))]
    script = (
        "import sys, py_compile\n"
        "for line in sys.stdin.read().split('\\n'):\n"
        "    source, compiled, name = line.split('\\t')\n"
        "    py_compile.compile(source, compiled, name, doraise=True,\n"
        "        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)\n"
    )
    environment = {**os.environ, "PYTHONHOME": str(root / "usr"), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory(prefix="virtserial-pyc-") as scratch:
        outputs = {module: Path(scratch, f"{number}.pyc") for number, module in enumerate(modules)}
        orders = [f"{module}\t{outputs[module]}\t/{module.relative_to(root)}" for module in modules]
        command = [*python, "-S", "-c", script]
        subprocess.run(command, input="\n".join(orders), text=True, env=environment, check=True)
        for module in modules:
            yield str(module.relative_to(root).with_suffix(".pyc")), outputs[module].read_bytes()


def _add_modules(archive: CpioArchive, root: Path) -> None:
    """The wanted modules with all they depend on, and a modules.dep that modprobe reads."""
    (base,) = (root / "lib/modules").iterdir()
    files = {_module_name(path.stem): path for path in sorted(base.rglob("*.ko"))}
    needed: dict[str, list[str]] = {}
    waiting = [_module_name(name) for name in MODULES]
    while waiting:
        name = waiting.pop()
        if name not in files:
            raise RigUnavailable(f"the kernel package has no module {name}")
        if name not in needed:
            data = files[name].read_bytes()
            archive.add_file(f"lib/modules/{base.name}/{files[name].name}", data)
            # .modinfo holds NUL-terminated key=value strings; depmod reads the same one.
            match = re.search(rb"\0depends=([^\0]*)\0", data)
            needed[name] = [_module_name(each) for each in match[1].decode().split(",") if each] if match else []
            waiting += needed[name]
    lines = []
    for name in sorted(needed):
        below = " ".join(files[each].name for each in _all_needed(name, needed))
        lines.append(f"{files[name].name}: {below}\n")
    archive.add_file(f"lib/modules/{base.name}/modules.dep", "".join(lines).encode())


def _all_needed(name: str, needed: dict[str, list[str]]) -> list[str]:
    """Every module that must be there before one, the last to load first, as modules.dep has it."""
    order: list[str] = []
    for each in needed[name]:
        for module in [each, *_all_needed(each, needed)]:
            if module in order:
                order.remove(module)
            order.append(module)
    return order


def _module_name(name: str) -> str:
    return name.replace("-", "_")
