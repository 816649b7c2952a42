"""A guest whose device is replaced by another one that takes over its state."""

from __future__ import annotations

from support.console_guest import FakeHost, Guest

from virtserial.console.device import ConsoleDevice
from virtserial.memory.state import StateMemory
from virtserial.pci.function import VirtioPciFunction
from virtserial.pci.layout import MsixLayout
from virtserial.pci.msix import MsixMessages
from virtserial.state.device_state import load, save
from virtserial.state.pci_state import PciState

CONSOLE, SERIAL = 0, 1
VECTORS = 9


class MovableGuest(Guest):
    """Ports: 0 is the console `con`, 1 the serial port `one`.

    Attributes:
        hosts: the host end of each port.
    """

    def __init__(self, max_ports=4, vectors=VECTORS, unplug=False, packed=False):
        self.vectors = vectors
        self.message_writer = MessageWriter() if unplug else None
        self.hosts = {}
        super().__init__("mapped", max_ports, event_idx=True, state=fresh_state(max_ports), packed=packed)

    def boot(self):
        super().boot()
        self.function = VirtioPciFunction(
            self.device, self.state, vectors=self.vectors, message_writer=self.message_writer
        )
        if not self.state.restored:
            self.function.client_negotiated(deletes_only_without_msix=True)
            self.function.reset()
        self.device.transport = self.interrupts

    def plug_both(self, connected=True, first_plug=1):
        for serial, (number, name) in enumerate([(SERIAL, "one"), (CONSOLE, "con")], first_plug):
            self.hosts[number] = FakeHost(connected)
            console = number == CONSOLE
            self.plug(number, self.hosts[number], name=name, is_console=console, has_backend=True, plug=serial)

    def begin(self):
        self.plug_both()
        self.start()
        self.tell(0xFFFFFFFF, 0)
        self.open(CONSOLE)
        self.open(SERIAL)
        self.heard()

    def save(self):
        self.device.pause()
        return save(self.device, PciState(self.function))

    def replace(self, connected=True, plug=None):
        """Another device, in another process, with ports of the same names; the driver's memory is mapped there."""
        self.state = fresh_state(self.max_ports)
        self.boot()
        self.memory.map_into(self.device.memory)
        (plug or self.plug_both)(connected, first_plug=20)

    def take_over(self, data):
        self.device.pause()
        load(self.device, PciState(self.function), data)
        self.device.resume()
        self.run()

    def move(self, connected=True):
        data = self.save()
        self.replace(connected)
        self.take_over(data)


class MessageWriter:
    """Notes the messages that a function with unplug=on sends."""

    def __init__(self):
        self.messages = []
        self.is_full = False

    def write_message(self, address, data):
        if not self.is_full:
            self.messages.append((address, data))
        return not self.is_full

    def ask_for_retry(self): ...


def fresh_state(max_ports):
    size = ConsoleDevice.state_size(max_ports) + VirtioPciFunction.state_size
    return StateMemory(bytearray(size + MsixMessages.state_size(MsixLayout.of(VECTORS))))
