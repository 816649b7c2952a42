"""A real console device behind a real PCI function, its turns run by hand."""

from __future__ import annotations

from virtserial.console.device import ConsoleDevice
from virtserial.memory.state import StateMemory
from virtserial.pci.function import VirtioPciFunction
from virtserial.pci.layout import MsixLayout
from virtserial.pci.msix import MsixMessages
from virtserial.virtio.features import TRANSPORT_FEATURES


class Turns:
    """The device's scheduler: nothing runs until a test says so."""

    def __init__(self):
        self.waiting = []
        self.time = 0.0

    def now(self):
        return self.time

    def add_turn(self, callback):
        self.waiting.append(callback)

    input_waits = at_leisure = is_shared = False

    @property
    def look(self):
        return self

    def call_at(self, due, callback):
        return None


class NoPortEvents:
    def guest_open_changed(self, number, is_open): ...
    def host_end_closed(self, number): ...
    def host_end_failed(self, number, error): ...


def build_function(vectors=3, max_ports=4, block=None, message_writer=None, **interfaces):
    """A function and the state memory it lives in, which a second call may take over."""
    size = ConsoleDevice.state_size(max_ports) + VirtioPciFunction.state_size
    size += MsixMessages.state_size(MsixLayout.of(vectors)) if message_writer is not None else 0
    block = bytearray(size + -size % 8) if block is None else block
    state = StateMemory(block)
    device = ConsoleDevice(state, max_ports, TRANSPORT_FEATURES, Turns(), NoPortEvents())
    return VirtioPciFunction(device, state, vectors=vectors, message_writer=message_writer, **interfaces), block
