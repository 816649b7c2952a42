"""Which QEMU to run: $VIRTSERIAL_QEMU or from PATH, for the architecture in our own name; and its version check."""

from __future__ import annotations

import os
import re

from virtserial.errors import ConfigError

OLDEST = (10, 1)
"""The first QEMU with vfio-user-pci."""
NAMES = re.compile(r"(?:virtserial-qemu(?:-system)?|qemu-system)-(\w+)")
INSTALL = f"install QEMU {OLDEST[0]}.{OLDEST[1]} or newer, or set VIRTSERIAL_QEMU=/path/to/qemu-system-ARCH"
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


def architecture_of(called_as: str) -> str:
    """Return the guest's architecture: ARCH of `virtserial-qemu-ARCH` or `qemu-system-ARCH`, else the host's."""
    matched = NAMES.fullmatch(os.path.basename(called_as))
    machine = matched[1] if matched is not None else os.uname().machine
    return ARCHITECTURES.get(machine, machine)


def find_program(architecture: str, called_as: str) -> str:
    """Return the path of the QEMU to run.

    Raises:
        ConfigError: there is none.
    """
    chosen = os.environ.get("VIRTSERIAL_QEMU")
    name = chosen or f"qemu-system-{architecture}"
    if "/" in name:
        if os.access(name, os.X_OK) and os.path.isfile(name):
            return name
        raise ConfigError(f"VIRTSERIAL_QEMU={name}: no such program", INSTALL)
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.isfile(path) and not _is_this_program(path, called_as):
            return path
    if chosen:
        raise ConfigError(f"VIRTSERIAL_QEMU={name}: not found on PATH", INSTALL)
    raise ConfigError(f"{name} not found on PATH; VIRTSERIAL_QEMU can name it", INSTALL)


def _is_this_program(path: str, called_as: str) -> bool:
    """We may be installed in QEMU's place, under its name."""
    try:
        return os.path.samefile(path, called_as)
    except OSError:
        return False


class VersionCheck:
    """Runs `QEMU -version` in the background.

    Raises:
        ConfigError: it cannot be started.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._reader, writer = os.pipe()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
        try:
            self._pid = os.posix_spawn(program, [program, "-version"], os.environ, file_actions=actions)
        except OSError as error:
            os.close(self._reader)
            raise ConfigError(f"{program}: {error.strerror}") from None
        finally:
            os.close(writer)
            os.close(null)

    def finish(self) -> None:
        """Wait for the version and check it.

        Raises:
            ConfigError: it is too old, or not QEMU.
        """
        with open(self._reader, "rb") as file:
            answer = file.read(4096).decode(errors="replace")
        os.waitpid(self._pid, 0)
        matched = re.search(r"version (\d+)\.(\d+)", answer)
        if matched is None:
            raise ConfigError(f"{self._program} does not print a QEMU version")
        version = int(matched[1]), int(matched[2])
        if version < OLDEST:
            raise ConfigError(
                f"{self._program} is QEMU {version[0]}.{version[1]}: virtserial needs vfio-user-pci, "
                f"which came with {OLDEST[0]}.{OLDEST[1]}",
                INSTALL,
            )
