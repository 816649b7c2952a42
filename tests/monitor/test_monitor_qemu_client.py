"""The client of QEMU's monitor, and commands of several steps; no I/O."""

from __future__ import annotations

import json

import pytest

from virtserial.errors import ConfigError
from virtserial.monitor import joined_hmp
from virtserial.monitor.descriptors import Client, NamedDescriptors
from virtserial.monitor.qmp import QmpError
from virtserial.monitor.qmp_client import Ask, MonitorGoneError, QmpClientSession
from virtserial.monitor.steps import run_steps

GREETING = {"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}}, "capabilities": ["oob"]}}


class Qemu:
    """The other end of a session, by hand."""

    def __init__(self, greeting=GREETING):
        self.events, self.is_ready = [], False
        self.session = QmpClientSession(self.events.append, self._ready)
        self._greeting = greeting

    def _ready(self):
        self.is_ready = True

    def says(self, *messages):
        self.session.receive(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))

    def heard(self):
        """What has been sent, with its descriptors."""
        sent = [(json.loads(data), fd) for data, fd in self.session.to_send]
        self.session.to_send.clear()
        return sent

    def negotiate(self):
        self.says(self._greeting)
        [(request, _)] = self.heard()
        self.says({"return": {}, "id": request["id"]})
        return request


@pytest.fixture
def qemu():
    qemu = Qemu()
    qemu.negotiate()
    return qemu


def asked(qemu, command, **how):
    """Ask; a list that gets the answer."""
    answers = []
    qemu.session.ask(Ask(command, {}, **how), answers.append)
    return answers


def test_what_is_asked_early_is_sent_after_the_negotiation():
    qemu = Qemu()
    answers = asked(qemu, "stop")
    assert qemu.heard() == []
    request = qemu.negotiate()
    assert (request["execute"], request["arguments"]) == ("qmp_capabilities", {"enable": ["oob"]})
    assert qemu.is_ready
    [(request, _)] = qemu.heard()
    assert request["execute"] == "stop"
    qemu.says({"return": {}, "id": request["id"]})
    assert answers == [{}]


def test_without_oob_everything_is_in_band():
    qemu = Qemu({"QMP": {"version": {}, "capabilities": []}})
    assert "arguments" not in qemu.negotiate()
    asked(qemu, "yank", oob=True)
    assert "execute" in qemu.heard()[0][0]


def test_answers_find_their_askers_whatever_their_order(qemu):
    first, second = asked(qemu, "one"), asked(qemu, "two", oob=True, fd=7)
    [(one, no_fd), (two, fd)] = qemu.heard()
    assert (one["execute"], two["exec-oob"], no_fd, fd) == ("one", "two", None, 7)
    qemu.says({"return": 2, "id": two["id"]}, {"event": "STOP", "timestamp": {}}, {"return": 1, "id": one["id"]})
    assert (first, second) == ([1], [2])
    assert [event["event"] for event in qemu.events] == ["STOP"]


def test_errors_keep_class_and_text(qemu):
    answers = asked(qemu, "one")
    [(request, _)] = qemu.heard()
    qemu.says({"error": {"class": "DeviceNotFound", "desc": "no"}, "id": request["id"]})
    assert (str(answers[0]), answers[0].error_class) == ("no", "DeviceNotFound")


def test_a_request_that_qemu_could_not_read_is_answered_too(qemu):
    answers = asked(qemu, "one")
    qemu.heard()
    qemu.says({"error": {"class": "GenericError", "desc": "JSON parse error"}})
    assert str(answers[0]) == "JSON parse error"


def test_messages_may_come_in_any_pieces(qemu):
    answers = asked(qemu, "one")
    [(request, _)] = qemu.heard()
    for byte in json.dumps({"return": "ä\n", "id": request["id"]}).encode() + b"\r\n":
        qemu.session.receive(bytes([byte]))
    assert answers == ["ä\n"]


def test_at_the_end_everybody_hears_of_it(qemu):
    early = Qemu()
    answers = [*asked(qemu, "one"), *asked(qemu, "two")]
    waiting = [asked(qemu, "one"), asked(early, "two")]
    qemu.session.end()
    early.session.end()
    late = asked(qemu, "three")
    assert answers == []
    assert all(isinstance(answer[0], MonitorGoneError) for answer in (*waiting, late))


# Steps


def run(steps, *answers):
    """Runs steps against prepared answers: what they asked, and what they came to."""
    asked, done, left = [], [], list(answers)

    def ask(what, go_on):
        asked.append(what.command)
        go_on(left.pop(0))

    run_steps(steps, ask, done.append)
    return asked, done


def test_steps_get_what_they_ask_for():
    def steps():
        one = yield Ask("one", {})
        two = yield Ask("two", {"one": one})
        return [one, two]

    assert run(steps(), 1, 2) == (["one", "two"], [[1, 2]])


def test_a_refusal_is_raised_where_it_was_asked():
    def undoing():
        try:
            yield Ask("one", {})
        except QmpError as error:
            yield Ask("undo", {})
            return str(error)

    assert run(undoing(), QmpError("no"), {}) == (["one", "undo"], ["no"])


GONE = ModuleNotFoundError(name="virtserial.migration.devices")


@pytest.mark.parametrize("error", [QmpError("no", "DeviceNotFound"), ConfigError("no"), KeyError("no"), GONE])
def test_whatever_is_raised_is_an_answer(error):
    def steps():
        yield Ask("one", {})
        raise error

    _, [answer] = run(steps(), 1)
    assert isinstance(answer, QmpError)
    if isinstance(error, KeyError):
        assert str(answer) == "internal error of virtserial; see its log"
    elif error is GONE:
        assert str(answer) == "virtserial's installed code is gone or was replaced: restart the service or the VM"
    else:
        assert (str(answer), answer.error_class) == ("no", getattr(error, "error_class", "GenericError"))


def test_the_end_of_qemu_is_no_answer():
    def steps():
        yield Ask("one", {})

    assert run(steps(), MonitorGoneError()) == (["one"], [])


# HMP


def test_names_in_qemus_help():
    text = "announce_self [interfaces] [id] -- Trigger GARP\r\nc|cont  -- resume emulation\r\n\r\nno command\r\n"
    assert joined_hmp.names_in_help(text) == ["announce_self", "c", "cont"]
    assert joined_hmp.names_in_help("info balloon  -- show balloon information\r\n") == ["balloon"]


def test_a_line_that_is_no_text_is_asked_as_text():
    client = Client(NamedDescriptors(), lambda: -1)
    steps = joined_hmp.run_line(None, client, "info \udcff", joined_hmp.Cpu(3))
    assert next(steps).arguments == {"command-line": "info \ufffd", "cpu-index": 3}
