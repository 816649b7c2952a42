"""A QMP session against a model of it: every request is answered once, in order, with its id; memory is bounded."""

from __future__ import annotations

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from virtserial.monitor.json_stream import MAX_BYTES
from virtserial.monitor.qmp import QmpError, QmpSession, greeting

# QEMU's parser takes no NUL character, and an integer of more than 64 bits as a float (test_monitor_json.py).
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
IDS = st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | TEXT | st.lists(st.integers(), max_size=2)
NOTHING = object()


class QmpModel(RuleBasedStateMachine):
    """A client that sends in pieces of any size, and is sometimes wrong; answers wait for the end of a request."""

    @initialize()
    def set_up(self):
        self.session = QmpSession(greeting())
        assert "QMP" in self.said()[0]
        self.unsent = b""
        self.awaited = []
        self.negotiated = False

    def said(self):
        return [json.loads(line) for line in self.session.data_to_send().split(b"\r\n")[:-1]]

    def send(self, value, outcome):
        request_id = value.get("id", NOTHING) if isinstance(value, dict) else NOTHING
        self.unsent += json.dumps(value).encode() + b"\n"
        self.awaited.append((outcome, request_id))

    @rule(request_id=IDS)
    def negotiate(self, request_id):
        self.send({"execute": "qmp_capabilities", "id": request_id}, "error" if self.negotiated else "return")
        self.negotiated = True

    @rule(request_id=IDS, fails=st.booleans(), with_id=st.booleans())
    def command(self, request_id, fails, with_id):
        request = {"execute": "fail" if fails else "succeed", "arguments": {"x": [1, 2]}}
        if with_id:
            request["id"] = request_id
        self.send(request, "error" if fails or not self.negotiated else "return")

    @rule(value=st.sampled_from(([], 7, "x", {"execute": 7}, {}, {"execute": "succeed", "y": 1})))
    def no_command(self, value):
        self.send(value, "error")

    @rule(count=st.integers(1, 200))
    def deliver(self, count):
        piece, self.unsent = self.unsent[:count], self.unsent[count:]
        self.receive(piece)

    @rule()
    def event(self):
        before = self.session._negotiated
        self.session.event("HAPPENED", {"a": 1}, 7.5)
        said = self.said()
        assert [each["event"] for each in said] == ["HAPPENED"] * before

    @rule(count=st.integers(0, 600), opening=st.sampled_from((b"[", b"{", b'{"a":', b'"', b"'", b"x")))
    def nonsense(self, count, opening):
        """Whatever is left open is cleared by a byte 0xFF."""
        self.deliver(1 << 20)
        for value in self.session.receive(opening * count + b"\xff"):
            self.session.request(value)
        assert all("error" in each for each in self.said())

    def receive(self, data):
        for received in self.session.receive(data):
            request = self.session.request(received)
            if request is not None:
                self.session.answer(request, QmpError("no") if request.command == "fail" else {"done": True})
        for answer in self.said():
            outcome, request_id = self.awaited.pop(0)
            assert outcome in answer
            assert answer.get("id", NOTHING) == request_id or (request_id is NOTHING and "id" not in answer)
        assert len(self.session._stream._data) <= MAX_BYTES

    def teardown(self):
        if hasattr(self, "session"):
            self.receive(self.unsent)
            assert self.awaited == []


def test_every_request_is_answered_once_and_in_order():
    run_state_machine_as_test(QmpModel, settings=settings(max_examples=40, stateful_step_count=30))
