"""A console device with the other two sides a test plays: a guest that writes its rings itself, and host ends."""

from struct import Struct

from support.packed_builder import PackedRingBuilder
from support.ring_builder import GuestMemory, RingBuilder

from virtserial.console.device import ConsoleDevice
from virtserial.console.wire import receiveq_index, transmitq_index
from virtserial.errors import BackendError
from virtserial.memory.state import StateMemory
from virtserial.testing.memory_driver import StepScheduler
from virtserial.virtio import features, status

READY, ADD, REMOVE, PORT_READY, CONSOLE, RESIZE, OPEN, NAME = range(8)
CONTROL_RX, CONTROL_TX = 2, 3
F_SIZE, F_MULTIPORT = 1, 2
NEGOTIATED = status.ACKNOWLEDGE | status.DRIVER | status.FEATURES_OK
LIVE = NEGOTIATED | status.DRIVER_OK
FEATURES = features.VIRTIO_F_VERSION_1 | features.VIRTIO_F_INDIRECT_DESC | F_MULTIPORT | F_SIZE
MESSAGE = Struct("<IHH")


class FakeHost:
    """A host end.  `room` is how many bytes it takes before it blocks (None: all), `at_most` per call."""

    exact = True

    def __init__(self, connected=True):
        self.connected = connected
        self.ended = False
        self.readable = False
        self.output_discarded = self.input_discarded = 0
        self.listener = None
        self.wants_input = False
        self.room = None
        self.at_most = None
        self.taken = bytearray()
        self.input = bytearray()
        self.failure = None
        self.inside = None
        """Called in the middle of the next writev or readv."""
        self.heard = []
        self.closed = False
        self.writes = self.reads = 0

    def start(self):
        if self.connected:
            self.listener.host_opened()

    backlog = None
    """What it keeps for clients that come late; None: it does not."""

    @property
    def backlog_size(self):
        return len(self.backlog or b"")

    def read_backlog(self, most):
        return self.backlog[len(self.backlog) - most :]

    def restore_backlog(self, backlog):
        if self.backlog == b"":
            self.backlog = backlog

    def guest_opened(self):
        self.heard.append("opened")

    def guest_closed(self):
        self.heard.append("closed")

    def wait_readable(self):
        return False

    def report_end(self):
        pass

    def hold_input(self):
        return False

    def wait_writable(self):
        return False

    def guest_ready(self):
        self.heard.append("ready")

    def close(self):
        self.connected = False
        self.closed = True

    def _interfere(self):
        if self.failure:
            self.connected, self.ended = False, True
            raise BackendError(self.failure)
        if self.inside:
            inside, self.inside = self.inside, None
            inside()

    def writev(self, buffers):
        self.writes += 1
        self._interfere()
        if not self.connected:
            return 0
        data = b"".join(buffers)
        limits = [limit for limit in (self.room, self.at_most) if limit is not None]
        data = data[: min([len(data), *limits])]
        self.taken += data
        if self.room is not None:
            self.room -= len(data)
        return len(data)

    def readv(self, buffers):
        self.reads += 1
        self._interfere()
        if not self.input or not self.connected:
            self.readable = False
            return 0
        count = 0
        for view in buffers:
            part = self.input[: len(view)]
            view[: len(part)] = part
            del self.input[: len(part)]
            count += len(part)
        return count

    # What happens on the host

    def feed(self, data):
        self.input += data
        self.readable = True
        self.listener.host_readable()

    def drain(self, room=None):
        self.room = room
        self.listener.host_writable()

    def come(self):
        self.connected = True
        self.listener.host_opened()

    def leave(self, for_ever=False):
        self.connected, self.ended, self.readable = False, for_ever, False
        self.listener.host_closed()


class Events:
    """PortEvents, kept."""

    def __init__(self):
        self.opens = []
        self.closed = []
        self.failed = []

    def guest_open_changed(self, number, is_open):
        self.opens.append((number, is_open))

    def host_end_closed(self, number):
        self.closed.append(number)

    def host_end_failed(self, number, error):
        self.failed.append((number, str(error)))


class Interrupts:
    """A transport that counts."""

    def __init__(self):
        self.queues = []
        self.config = 0

    def queue_interrupt(self, index):
        self.queues.append(index)

    def config_interrupt(self):
        self.config += 1


class Guest:
    """A device, its memory, and the driver's side of it."""

    def __init__(
        self, kind="mapped", max_ports=4, event_idx=False, size=1 << 20, state=None, emergency_write=True, packed=False
    ):
        self.packed = packed
        self.memory = GuestMemory(kind, size)
        self.max_ports = max_ports
        self.event_idx = event_idx
        self.state = state or StateMemory(bytearray(ConsoleDevice.state_size(max_ports)))
        self._emergency_write = emergency_write
        self.rings = {}
        self.pause = 0.0005
        self.boot()
        self.memory.map_into(self.device.memory)

    def boot(self):
        """A new process: every object anew, over the same state."""
        self.scheduler = StepScheduler()
        self.events = Events()
        self.interrupts = Interrupts()
        self.failures = []
        self.device = ConsoleDevice(
            self.state,
            self.max_ports,
            features.TRANSPORT_FEATURES | (features.VIRTIO_F_RING_PACKED if self.packed else 0),
            self.scheduler,
            self.events,
            emergency_write=self._emergency_write,
        )
        self.device.transport = self.interrupts
        self.device.on_failure = self.failures.append

    def succeed(self):
        """The worker was killed; a successor has the state, the memory, and no doorbells."""
        self.state = StateMemory(self.state.u8)
        self.boot()
        self.memory.map_into(self.device.memory)

    def close(self):
        self.memory.close()

    def run(self):
        """Let the device run until it waits, and `pause` seconds longer."""
        self.scheduler.run()
        self.scheduler.advance(self.pause)

    # The driver

    def negotiate(self, accepted=FEATURES):
        if self.event_idx:
            accepted |= features.VIRTIO_F_EVENT_IDX
        if self.packed:
            accepted |= features.VIRTIO_F_RING_PACKED
        self.device.set_status(0)
        self.device.set_status(status.ACKNOWLEDGE | status.DRIVER)
        self.device.driver_features = accepted
        self.device.set_status(NEGOTIATED)
        assert self.device.status == NEGOTIATED

    def enable(self, *indices, size=16):
        for index in indices:
            builder = PackedRingBuilder if self.packed else RingBuilder
            ring = self.rings[index] = builder(self.memory, size, self.event_idx)
            queue = self.device.queues[index]
            queue.size = size
            queue.desc_address, queue.avail_address, queue.used_address = ring.desc, ring.avail, ring.used
            self.device.enable_queue(index)

    def start(self, accepted=FEATURES, queues=None, control_buffers=8):
        """Bring the driver up to DEVICE_READY's doorstep."""
        self.negotiate(accepted)
        self.enable(*(range(2 * self.max_ports + 2) if queues is None else queues))
        self.device.set_status(LIVE)
        if accepted & F_MULTIPORT and control_buffers:
            self.post(CONTROL_RX, *[256] * control_buffers)
        self.run()

    def ring(self, index):
        """Ring, if the device asked for it, and let it run."""
        if self.rings[index].wants_bell():
            self.device.notify_alone(index)
        self.run()

    def post(self, index, *lengths, pieces=1):
        """Post receive buffers."""
        for length in lengths:
            self.rings[index].add(writable=[length // pieces] * pieces)
        self.ring(index)

    def send(self, index, *chains):
        """Send chains, each bytes or a list of them."""
        for chain in chains:
            self.rings[index].add([chain] if isinstance(chain, bytes) else chain)
        self.ring(index)

    def tell(self, port, event, value=1):
        """Send a control message."""
        self.send(CONTROL_TX, MESSAGE.pack(port, event, value))

    def heard(self, repost=True):
        """Return the control messages that came, as (port, event, value, payload); post their buffers again."""
        messages = []
        while used := self.rings[CONTROL_RX].harvest():
            messages += [(*MESSAGE.unpack_from(each.data), each.data[8:]) for each in used]
            if repost:
                self.post(CONTROL_RX, *[256] * len(used))
        if not self.packed:
            self.rings[CONTROL_RX].set_used_event(self.rings[CONTROL_RX].seen)
        return messages

    def received(self, index):
        """What the device wrote into a queue's buffers."""
        return b"".join(used.data for used in self.rings[index].harvest())

    def plug(self, number, host=None, **options):
        """Plug a port in and attach a host end."""
        port = self.device.add_port(number, **options)
        if host is not None:
            port.attach(host)
        return port

    def open(self, number):
        """Make a port known and open it."""
        self.tell(number, PORT_READY)
        self.tell(number, OPEN)

    @property
    def needs_reset(self):
        return bool(self.device.status & status.DEVICE_NEEDS_RESET)


def queues_of(number):
    return receiveq_index(number), transmitq_index(number)
