"""The control protocol against a model of it: however ports, hosts, buffers and the driver come and go, the driver is
told the truth in the end, never of a port that it does not know, and what waits to be told is bounded."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.console_guest import (
    ADD,
    CONSOLE,
    CONTROL_RX,
    NAME,
    OPEN,
    PORT_READY,
    READY,
    REMOVE,
    RESIZE,
    FakeHost,
    Guest,
)

MAX_PORTS = 5
NUMBERS = st.integers(1, MAX_PORTS - 1)
RING = 16
ALL_BITS = 63


class ControlModel(RuleBasedStateMachine):
    """The driver posts control buffers when it likes and believes what it is told."""

    @initialize(event_idx=st.booleans())
    def set_up(self, event_idx):
        self.guest = Guest("mapped", MAX_PORTS, event_idx=event_idx, size=1 << 19)
        self.hosts = {}
        self.plugs = 0
        self.restart()

    @rule()
    def restart(self):
        self.guest.rings.clear()
        memory = self.guest.memory
        memory._rings, memory._next = 0, 0x40000
        memory.view[:] = bytes(memory.size)
        self.guest.start(control_buffers=0)
        self.believed = {}
        self.answered = set()
        self.posted = 0
        self.has_said_ready = False

    @rule(times=st.integers(1, 3))
    def device_ready(self, times):
        self.has_said_ready = True
        for _ in range(times):
            self.guest.tell(0xFFFFFFFF, READY)

    @rule(number=NUMBERS, connected=st.booleans())
    def plug(self, number, connected):
        if number not in self.hosts:
            self.plugs += 1
            self.hosts[number] = FakeHost(connected)
            self.guest.plug(number, self.hosts[number], name=f"port.{number}", has_backend=True, plug=self.plugs)

    @rule(number=NUMBERS)
    def unplug(self, number):
        if self.hosts.pop(number, None) is not None:
            self.guest.device.remove_port(number)

    @rule(number=NUMBERS)
    def host_comes_or_leaves(self, number):
        host = self.hosts.get(number)
        if host is not None:
            host.leave() if host.connected else host.come()
            self.guest.run()

    @rule(number=NUMBERS, value=st.integers(0, 3), event=st.sampled_from((PORT_READY, OPEN)))
    def driver_says(self, number, value, event):
        if number in self.believed:
            if event == PORT_READY and value:
                self.answered.add(number)
            self.guest.tell(number, event, value)

    @rule(number=st.sampled_from((MAX_PORTS, 500, 0xFFFFFFFF)), event=st.integers(1, 9))
    def nonsense(self, number, event):
        self.guest.tell(number, event)

    @precondition(lambda self: self.posted < RING)
    @rule(count=st.integers(1, RING))
    def post(self, count):
        count = min(count, RING - self.posted)
        self.posted += count
        self.guest.post(CONTROL_RX, *[64] * count)

    @rule()
    def hear(self):
        self.listen()

    def listen(self):
        """Believe what has come; return how many messages that were."""
        messages = self.guest.heard(repost=False)
        self.posted -= len(messages)
        for number, event, value, payload in messages:
            if event == ADD:
                self.believed.setdefault(number, {"name": None, "open": 0})
                continue
            assert number in self.believed, f"message {event} about port {number}, which the driver does not know"
            if event == REMOVE:
                del self.believed[number]
                self.answered.discard(number)
            elif event == NAME:
                self.believed[number]["name"] = payload
            elif event == OPEN:
                self.believed[number]["open"] = value
            else:
                assert event in (CONSOLE, RESIZE)
        return len(messages)

    @invariant()
    def what_waits_is_bounded(self):
        if hasattr(self, "guest"):
            assert all(slot.record.pending <= ALL_BITS for slot in self.guest.device.slots)
            assert not self.guest.needs_reset

    def teardown(self):
        if not hasattr(self, "guest"):
            return
        self.device_ready(1)
        heard = 1
        while heard:
            self.post(RING)
            heard = self.listen()
            for number in self.believed.keys() - self.answered:
                self.driver_says(number, 1, PORT_READY)
                heard += 1
        assert self.believed.keys() == self.hosts.keys()
        for number, belief in self.believed.items():
            assert belief == {"name": b"port.%d\0" % number, "open": int(self.hosts[number].connected)}
        self.guest.close()


def test_the_driver_is_told_the_truth():
    run_state_machine_as_test(ControlModel, settings=settings(max_examples=40, stateful_step_count=40))
