"""PCI configuration of QEMU's functions, read and written from outside while the virtual machine stands still.

QEMU's monitor has no command for it, but its human lines `i` and `o` read and write I/O ports, and the ports 0xcf8 and
0xcfc reach every function of a PC's buses (PCI Local Bus Specification 3.0, 3.2.2.3.2; hw/pci/pci_host.c).  The guest
may stand between its own two accesses: whoever comes here puts 0xcf8 back as it was (`borrowed`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from virtserial.errors import ConfigError
from virtserial.monitor.qmp_client import Ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from virtserial.monitor.steps import Steps

CONFIG_ADDRESS: Final = 0xCF8
CONFIG_DATA: Final = 0xCFC
ENABLE: Final = 1 << 31
SIZES: Final = {1: "b", 2: "h", 4: "w"}
PCI_INTERRUPT_LINE: Final = 0x3C
VENDOR: Final = 0x1AF4
DEVICES: Final = (0x1043, 0x1003)
"""A modern and a transitional virtio-serial function."""
MAX_FUNCTIONS: Final = 255
NO_MACHINE: Final = 0xFFFFFFFF
WORDS_AT_ONCE: Final = 1024


class Function(NamedTuple):
    """Where a function is: bus, device and function number."""

    bus: int
    slot: int
    function: int


def monitor_line(line: str) -> Steps[str]:
    """Have QEMU run a line of its human monitor; return what it prints."""
    return str((yield Ask("human-monitor-command", {"command-line": line})))


def read_port(port: int, size: int) -> Steps[int]:
    """Read an I/O port.

    Raises:
        ConfigError: QEMU prints something else.
    """
    printed = yield from monitor_line(f"i /{SIZES[size]} {port:#x}")
    found = re.fullmatch(r"port[bwl]\[0x[0-9a-f]+\] = (0x[0-9a-f]+)", printed.strip())
    if found is None:
        raise ConfigError(f"QEMU's monitor does not read I/O ports as it used to: {printed.strip()[:100]!r}")
    return int(found[1], 16)


def write_port(port: int, size: int, value: int) -> Steps[None]:
    """Write an I/O port.

    Raises:
        ConfigError: QEMU does not.
    """
    printed = yield from monitor_line(f"o /{SIZES[size]} {port:#x} {value:#x}")
    if printed.strip():
        raise ConfigError(f"QEMU's monitor does not write I/O ports as it used to: {printed.strip()[:100]!r}")


def probe() -> Steps[None]:
    """Whether this QEMU lets its PCI configuration be reached; harmless while the guest runs.

    Raises:
        ConfigError: it does not; the text says why.
    """
    if (yield from read_port(CONFIG_ADDRESS, 4)) == NO_MACHINE:
        raise ConfigError("this machine has no PCI configuration at I/O ports 0xcf8 and 0xcfc")


def read(function: Function, register: int, size: int) -> Steps[int]:
    """Read a register of a function's configuration."""
    yield from write_port(CONFIG_ADDRESS, 4, _address(function, register))
    return (yield from read_port(CONFIG_DATA + (register & 3), size))


def write(function: Function, register: int, size: int, value: int) -> Steps[None]:
    """Write a register of a function's configuration."""
    yield from write_port(CONFIG_ADDRESS, 4, _address(function, register))
    yield from write_port(CONFIG_DATA + (register & 3), size, value)


def _address(function: Function, register: int) -> int:
    return ENABLE | function.bus << 16 | function.slot << 11 | function.function << 8 | register & ~3


def borrowed(steps: Steps[Any]) -> Steps[Any]:
    """Go through steps that use 0xcf8, then put it back as it was."""
    before = yield from read_port(CONFIG_ADDRESS, 4)
    try:
        return (yield from steps)
    finally:
        yield from write_port(CONFIG_ADDRESS, 4, before)


def read_memory(address: int, words: int) -> Steps[bytes]:
    """Read guest-physical memory, device registers included, in words of 4 bytes.

    Raises:
        ConfigError: QEMU prints something else.
    """
    data = bytearray()
    while len(data) < 4 * words:
        count = min(words - len(data) // 4, WORDS_AT_ONCE)
        printed = yield from monitor_line(f"xp /{count}xw {address + len(data):#x}")
        found = re.findall(r"0x([0-9a-f]{8})\b(?!:)", printed.partition(":")[2])
        if len(found) != count:
            raise ConfigError(f"QEMU's monitor does not read memory as it used to: {printed.strip()[:100]!r}")
        for word in found:
            data += int(word, 16).to_bytes(4, "little")
    return bytes(data)


# Which function is which controller


def locate(configurations: Callable[[], Mapping[int, bytes]]) -> Steps[dict[int, Function]]:
    """Find the functions that are ours.  QEMU tells where functions are, but not which one is at which socket.

    So each candidate gets a number of its own into its interrupt-line register, which only tells software what firmware
    chose; the controllers, whom QEMU passes every write on to, tell which number they got; then it is put back.

    Args:
        configurations: by controller's index, its configuration space as it is now.

    Raises:
        ConfigError: a controller is no function of this machine.
    """
    buses = cast("Sequence[Mapping[str, Any]]", (yield Ask("query-pci", {})))
    candidates = [function for bus in buses for function in _candidates(bus["devices"])]
    if len(candidates) > MAX_FUNCTIONS:
        raise ConfigError(f"{len(candidates)} virtio-serial functions, at most {MAX_FUNCTIONS} can be told apart")
    lines: dict[Function, int] = {}
    for function in candidates:
        lines[function] = yield from read(function, PCI_INTERRUPT_LINE, 1)
    numbers: dict[int, int] = {}
    try:
        for number, function in enumerate(candidates, 1):
            yield from write(function, PCI_INTERRUPT_LINE, 1, number)
        numbers = {index: space[PCI_INTERRUPT_LINE] for index, space in configurations().items()}
    finally:
        for function, line in lines.items():
            yield from write(function, PCI_INTERRUPT_LINE, 1, line)
    if sorted(set(numbers.values())) != sorted(numbers.values()) or not all(
        1 <= number <= len(candidates) for number in numbers.values()
    ):
        raise ConfigError(f"{len(numbers)} controllers are {len(candidates)} functions of this machine's PCI buses")
    return {index: candidates[number - 1] for index, number in numbers.items()}


def _candidates(devices: Sequence[Mapping[str, Any]]) -> Iterator[Function]:
    for device in devices:
        if device["id"]["vendor"] == VENDOR and device["id"]["device"] in DEVICES:
            yield Function(device["bus"], device["slot"], device["function"])
        yield from _candidates(device.get("pci_bridge", {}).get("devices", ()))
