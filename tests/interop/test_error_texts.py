"""Every error text that scripts match on: from the command line and from the monitor, QEMU's own device beside ours.

No guest is booted: QEMU's machine is stopped before its first instruction.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.places import SOURCE
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.monitor.qmp import QmpError
from virtserial.rig.guest import ENDS_WITH_ITS_PARENT
from virtserial.rig.qemu import find_qemu

GENERIC, NOT_FOUND = "GenericError", "DeviceNotFound"
GOOD_CONTROLLERS = ("virtio-serial-pci,id=wide,max_ports=32", "virtio-serial-pci,id=few,max_ports=4")
SETUP = (
    f"-device {GOOD_CONTROLLERS[0]} -device {GOOD_CONTROLLERS[1]}"
    " -chardev null,id=c0 -device virtserialport,id=p1,bus=few.0,nr=2,name=taken,chardev=c0"
    " -device virtserialport,id=p2,bus=few.0,nr=3,name="
)
ALL_OF_WIDE = " -device virtserialport,bus=wide.0" * 31


@dataclass(frozen=True)
class Case:
    """Something that is refused.

    Attributes:
        words: the option that is refused, after SETUP and `before`; none if it cannot be said there.
        request: the same as QMP has it: the command and its arguments.
        human: the same as HMP has it, by way of human-monitor-command.
    """

    text: str
    words: str = ""
    request: tuple[str, dict[str, object]] | None = None
    human: str = ""
    error_class: str = GENERIC
    before: str = ""


def refused_device(text, properties, before=""):
    """A -device and the device_add with the same properties."""
    driver, *pairs = properties.split(",")
    return Case(text, f"-device {properties}", ("device_add", {"driver": driver, **typed(pairs)}), before=before)


def typed(pairs):
    """key=value words as QMP has them."""
    split = (pair.split("=") for pair in pairs)
    return {key: int(value) if key in ("nr", "max_ports") else value for key, value in split}


RESERVED = "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward compatibility."
CASES = {
    "max_ports=0": refused_device(
        "Maximum number of serial ports not specified", "virtio-serial-pci,id=none,max_ports=0"
    ),
    "max_ports=512": refused_device("maximum ports supported: 511", "virtio-serial-pci,id=many,max_ports=512"),
    "nr too big": refused_device(
        "virtio-serial-bus: Out-of-range port id specified, max. allowed: 3", "virtserialport,bus=few.0,nr=4"
    ),
    "bus full": refused_device(
        "virtio-serial-bus: Out-of-range port id specified, max. allowed: 3",
        "virtserialport,bus=few.0",
        " -device virtserialport,bus=few.0,nr=1",
    ),
    "bus full, a multiple of 32": refused_device(
        "virtio-serial-bus: Maximum port limit for this device reached", "virtserialport,bus=wide.0", ALL_OF_WIDE
    ),
    "nr taken": refused_device("virtio-serial-bus: A port already exists at id 2", "virtserialport,bus=few.0,nr=2"),
    "name taken, on another controller": refused_device(
        "virtio-serial-bus: A port already exists by name taken", "virtserialport,bus=wide.0,nr=31,name=taken"
    ),
    "empty name taken": refused_device(
        "virtio-serial-bus: A port already exists by name ", "virtserialport,bus=wide.0,nr=31,name="
    ),
    "neither interface": Case(
        "device cannot work as neither modern nor legacy mode is enabled",
        "-device virtio-serial-pci,disable-legacy=on,disable-modern=on",
        ("device_add", {"driver": "virtio-serial-pci", "disable-legacy": "on", "disable-modern": True}),
    ),
    "platform's IOMMU for a transitional device": Case(
        "VIRTIO_F_IOMMU_PLATFORM was supported by neither legacy nor transitional device",
        "-device virtio-serial-pci-transitional,iommu_platform=on",
        ("device_add", {"driver": "virtio-serial-pci-transitional", "iommu_platform": True}),
    ),
    "interfaces of a driver that says its own": refused_device(
        "Property 'virtio-serial-pci-transitional.disable-legacy' not found",
        "virtio-serial-pci-transitional,disable-legacy=on",
    ),
    "interface that is neither on nor off": refused_device(
        "Parameter 'disable-legacy' does not accept value 'maybe'", "virtio-serial-pci,disable-legacy=maybe"
    ),
    "nr=0": refused_device(RESERVED, "virtserialport,bus=wide.0,nr=0"),
    "bad bus": refused_device("Bus 'foo.0' not found", "virtserialport,bus=foo.0"),
    "unknown chardev": refused_device(
        "Property 'virtserialport.chardev' can't find value 'zz'", "virtserialport,bus=few.0,chardev=zz"
    ),
    "chardev taken": refused_device(
        "Property 'virtserialport.chardev' can't take value 'c0': chardev 'c0' is already in use",
        "virtserialport,bus=few.0,nr=1,chardev=c0",
    ),
    # With key=value QEMU's options refuse it before its devices can: Duplicate ID 'p1' for device.
    "device id twice": Case(
        "Duplicate device ID 'p1'",
        '-device {"driver":"virtserialport","bus":"few.0","nr":1,"id":"p1"}',
        ("device_add", {"driver": "virtserialport", "bus": "few.0", "nr": 1, "id": "p1"}),
    ),
    "chardev-remove in use": Case("Chardev 'c0' is busy", request=("chardev-remove", {"id": "c0"})),
    "chardev-remove unknown": Case("Chardev 'zz' not found", request=("chardev-remove", {"id": "zz"})),
    "chardev-add twice": Case(
        "Chardev with id 'c0' already exists",
        request=("chardev-add", {"id": "c0", "backend": {"type": "null", "data": {}}}),
    ),
    "chardev id twice": Case("Duplicate ID 'c0' for chardev", "-chardev null,id=c0", human="chardev-add null,id=c0"),
    "unknown chardev type": Case(
        "'foo' is not a valid char driver name", "-chardev foo,id=a", human="chardev-add foo,id=a"
    ),
    "device_del unknown": Case(
        "Device 'nope' not found", request=("device_del", {"id": "nope"}), error_class=NOT_FOUND
    ),
}
NO_CONTROLLER = refused_device("No 'virtio-serial-bus' bus found for device 'virtserialport'", "virtserialport")


class QemuProgram:
    """QEMU with its own device."""

    refuses_with = 1

    def __init__(self):
        self.environment = find_qemu().environment

    def command(self, words):
        machine = ["-machine", "pc", "-accel", "tcg", "-m", "32", "-S", "-nodefaults", "-no-user-config"]
        return [*find_qemu().command, *machine, "-display", "none", "-monitor", "none", *words]


class VirtserialProgram:
    """`virtserial serve` with the same options; controllers listen in a folder of the test's."""

    refuses_with = 2

    def __init__(self, folder):
        self.environment = {"PYTHONPATH": str(SOURCE)}
        self._folder = folder

    def command(self, words):
        # What is refused opens no socket, so it needs none, and its option stays as it is.
        placed = [f"{word},socket={self._folder}/{word[-9:]}" if word in GOOD_CONTROLLERS else word for word in words]
        return [sys.executable, "-m", "virtserial", "serve", *placed]


@pytest.fixture(scope="module", params=["qemu", "virtserial"])
def program(request):
    with tempfile.TemporaryDirectory(prefix="vs-") as folder:
        yield QemuProgram() if request.param == "qemu" else VirtserialProgram(folder)


@contextmanager
def running(program, words):
    """A client of the QMP monitor of a program with these options."""
    with tempfile.TemporaryDirectory(prefix="vs-") as folder, open(f"{folder}/output", "w+") as output:
        path = f"{folder}/qmp"
        process = subprocess.Popen(
            [*ENDS_WITH_ITS_PARENT, *program.command([*words, "-qmp", f"unix:{path},server=on,wait=off"])],
            env={**os.environ, **program.environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        connection = socket.socket(socket.AF_UNIX)

        def connected():
            assert process.poll() is None, Path(output.name).read_text()
            try:
                connection.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

        try:
            wait_until(connected, 60, "the monitor does not listen")
            yield QmpClient(connection, 60)
        finally:
            connection.close()
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.fixture(scope="module")
def monitor(program):
    with running(program, SETUP.split()) as monitor:
        yield monitor


def refused_start(program, words):
    """What a program says that does not start."""
    done = subprocess.run(
        program.command(words), env={**os.environ, **program.environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == program.refuses_with, done
    return done.stderr


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.words])
def test_option_is_refused(program, name):
    case = CASES[name]
    said = refused_start(program, f"{SETUP}{case.before} {case.words}".split())
    # What to do about it may follow.
    assert f": {case.words}: {case.text}\n" in said, said


def test_port_without_a_controller_is_refused(program):
    said = refused_start(program, NO_CONTROLLER.words.split())
    assert f": {NO_CONTROLLER.words}: {NO_CONTROLLER.text}\n" in said, said
    with running(program, []) as monitor:
        assert refusal(monitor, NO_CONTROLLER) == (GENERIC, NO_CONTROLLER.text)


def refusal(monitor, case):
    """(class, text) of the error that a case's request is answered with."""
    command, arguments = case.request
    with pytest.raises(QmpError) as refused:
        monitor(command, **arguments)
    return refused.value.error_class, str(refused.value)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.request])
def test_request_is_refused(monitor, name):
    case = CASES[name]
    words = case.before.split()[1::2]
    for place, word in enumerate(words):
        driver, *pairs = word.split(",")
        monitor("device_add", driver=driver, id=f"before{place}", **typed(pairs))
    try:
        assert refusal(monitor, case) == (case.error_class, case.text)
    finally:
        for place in range(len(words)):
            monitor("device_del", id=f"before{place}")
            monitor.wait_event("DEVICE_DELETED")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.human])
def test_human_command_is_refused(monitor, name):
    said = monitor("human-monitor-command", command_line=CASES[name].human)
    assert CASES[name].text in said.splitlines()[0]
