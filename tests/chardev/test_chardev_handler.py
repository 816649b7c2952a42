"""chardev handler: classes in the worker, coroutines in processes of their own."""

import os
import time
from pathlib import Path

import pytest
from support import handlers_for_tests

import virtserial.chardev.handler
import virtserial.handler
from virtserial.chardev.handler_chardev import HandlerChardev
from virtserial.errors import BackendError, ConfigError
from virtserial.host_end.handler import PENDING_MAX

HERE = Path(handlers_for_tests.__file__)


@pytest.fixture
def serve(house):
    """Open a handler of the tests' file and give (chardev, port)."""

    def serve(name, **how):
        chardev = house.open(HandlerChardev("h", class_name=name, path=str(HERE)))
        return chardev, house.port(**how)

    return serve


def handler_of(port):
    return port.end._handler


def test_handlers_of_earlier_releases_import_the_same_class():
    assert virtserial.chardev.handler.PortHandler is virtserial.handler.PortHandler


class TestClass:
    def test_hears_the_port_in_order(self, house, serve):
        chardev, port = serve("Recorder")
        assert chardev.filename == f"handler:{HERE}:Recorder"
        assert port.events == ["opened"]
        port.end.guest_ready()
        port.end.guest_opened()
        assert port.end.writev([memoryview(b"one"), memoryview(b"two")]) == 6
        port.end.guest_closed()
        port.end.close()
        assert handler_of(port).heard == [
            "started",
            "guest_ready",
            "guest_open",
            b"one",
            b"two",
            "guest_close",
            "stopped",
        ]

    def test_opens_and_closes_the_host_side(self, house, serve):
        _, port = serve("Closed")
        handler = handler_of(port)
        assert (port.events, port.end.connected) == ([], False)
        assert port.write(b"lost") == 4
        assert port.end.output_discarded == 4
        handler.port.open()
        assert port.events == ["opened"]
        handler.port.close()
        house.until(lambda: port.events == ["opened", "closed"])
        assert not port.end.ended
        handler.port.open()
        assert port.events[-1] == "opened"

    def test_write_is_bounded_and_says_when_there_is_room(self, house, serve):
        _, port = serve("Recorder", reads=False)
        handler = handler_of(port)
        assert handler.port.write(b"early") == handler.port.guest_ready() == 0
        port.end.guest_opened()
        house.until(lambda: handler.heard[-1] == "guest_writable")
        assert handler.port.guest_ready() == PENDING_MAX
        assert handler.port.write(bytes(PENDING_MAX - 1)) == PENDING_MAX - 1
        assert handler.port.write(b"ab") == 1
        handler.heard.clear()
        house.until(lambda: "readable" in port.events)
        assert handler.heard == []
        port.read_all()
        assert port.received == bytes(PENDING_MAX - 1) + b"a"
        house.until(lambda: handler.heard == ["guest_writable"])

    def test_read_into_many_small_buffers(self, house, serve):
        _, port = serve("Recorder", reads=False)
        port.end.guest_opened()
        handler_of(port).port.write(b"0123456789")
        house.until(lambda: port.end.readable)
        buffers = [bytearray(3), bytearray(0), bytearray(3)]
        assert port.end.readv([memoryview(buffer) for buffer in buffers]) == 6
        assert b"".join(buffers) == b"012345"
        port.read_all()
        assert port.received == b"6789"

    def test_what_was_accepted_arrives_before_the_close(self, house, serve):
        _, port = serve("Recorder", reads=False)
        port.end.guest_opened()
        handler = handler_of(port)
        handler.port.write(b"goodbye")
        handler.port.close()
        house.settle(0.05)
        assert handler.port.write(b"more") == 0
        assert "closed" not in port.events
        port.read_all()
        assert port.received == b"goodbye"
        house.until(lambda: "closed" in port.events)

    def test_guest_that_closes_discards_what_it_has_not_read(self, house, serve):
        _, port = serve("Recorder", reads=False)
        port.end.guest_opened()
        handler_of(port).port.write(b"unread")
        port.end.guest_closed()
        assert port.end.input_discarded == 6
        port.read_all()
        assert port.received == b""

    def test_fewer_consumed_throttles_until_it_is_lifted(self, house, serve):
        _, port = serve("Slow")
        data = memoryview(b"abcdefgh")
        assert port.end.writev([data]) == 3
        assert port.end.writev([data[3:]]) == 0
        house.settle(0.05)
        assert "writable" not in port.events
        handler_of(port).port.throttle(False)
        house.until(lambda: "writable" in port.events)
        assert port.end.writev([data[3:]]) == 3
        assert handler_of(port).heard[1:] == [b"abc", b"def"]

    def test_fault_in_have_data_closes_the_port(self, house, serve):
        _, port = serve("Faulty")
        with pytest.raises(BackendError, match=r"have_data of the handler failed: ZeroDivisionError\('have_data'\)"):
            port.write(b"x")
        assert (port.end.ended, port.end.connected) == (True, False)

    def test_fault_in_an_event_closes_the_port_and_the_next_open_begins_again(self, house, serve):
        chardev, port = serve("Faulty")
        port.end.guest_opened()
        house.until(lambda: "closed" in port.events)
        assert port.end.ended
        port.end.close()
        chardev.connection_ended()
        chardev.guest_opened()
        chardev.guest_opened()
        assert len(house.connections) == 1
        assert house.port().end.connected

    def test_fault_at_the_start(self, house, serve):
        _, port = serve("FaultyStart")
        house.until(lambda: port.events == ["closed"])
        assert (port.end.ended, port.end.connected) == (True, False)

    def test_wrong_count(self, house, serve):
        _, port = serve("Liar")
        with pytest.raises(BackendError, match="5 is not a number of bytes from 0 to 4"):
            port.write(b"data")

    def test_wrong_class(self, house, serve):
        with pytest.raises(BackendError, match="NoHandler is not a subclass of virtserial"):
            serve("NoHandler")

    def test_by_module_name(self, house, monkeypatch):
        monkeypatch.syspath_prepend(str(HERE.parent))
        chardev = house.open(HandlerChardev("h", class_name="support.handlers_for_tests:Recorder"))
        assert chardev.filename == "handler:support.handlers_for_tests:Recorder"
        assert house.port().end.connected


class TestCoroutine:
    def test_is_a_stream_in_another_process(self, house, serve):
        _, port = serve("upper")
        data = b"shout " * 50_000
        sent = 0
        while sent < len(data):
            sent += port.end.writev([memoryview(data)[sent:]])
            house.loop.run_once(0.01)
        house.until(lambda: len(port.received) == len(data))
        assert port.received == data.upper()

    def test_that_returns_is_a_host_that_left_and_begins_with_the_next_open(self, house, serve):
        chardev, port = serve("once")
        for number in (b"1\n", b"2\n"):
            port.write(number)
            house.until(lambda port=port: "closed" in port.events)
            assert port.received == b"answer to " + number
            assert port.end.ended
            port.end.close()
            chardev.connection_ended()
            house.settle(0.05)
            assert not house.connections
            chardev.guest_opened()
            port = house.port()
        assert house.reports == []

    def test_a_guest_that_opens_and_opens_starts_few_processes(self, house, serve, monkeypatch):
        monkeypatch.setattr("virtserial.chardev.handler_chardev.RESTARTS_AT_ONCE", 1)
        chardev, port = serve("once")
        starts, end = 1, time.monotonic() + 1.2
        while time.monotonic() < end:
            if port is not None:
                port.write(b"\n")
                house.until(lambda port=port: port.end.ended)
                port.end.close()
                chardev.connection_ended()
                port = None
            chardev.guest_opened()
            house.loop.run_once(0.001)
            if house.connections:
                port, starts = house.port(), starts + 1
        assert starts <= 4

    def test_one_that_stays_is_replaced_without_waiting_for_it(self, house, serve, monkeypatch):
        monkeypatch.setattr("virtserial.chardev.handler_chardev.END_SECONDS", 2.0)
        chardev, port = serve("stays")
        house.until(lambda: "closed" in port.events)
        port.end.close()
        chardev.connection_ended()
        house.settle(1)
        first = chardev._pid
        begin = time.monotonic()
        chardev.guest_opened()
        assert time.monotonic() - begin < 1.5, "the keeper serves others meanwhile"
        port = house.port()
        house.until(lambda: port.received == b"here")
        assert chardev._pid not in (0, first)
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)

    def test_that_crashes_is_reported(self, house, serve):
        _, port = serve("crash")
        port.write(b"x")
        house.until(lambda: "closed" in port.events and house.reports)
        assert house.reports == ["warning: chardev 'h': the handler's process ended with status 3"]

    def test_close_ends_the_process(self, house, serve):
        chardev, _ = serve("upper")
        pid = chardev._pid
        chardev.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    def test_close_kills_one_that_does_not_listen(self, house, serve, monkeypatch):
        monkeypatch.setattr("virtserial.chardev.handler_chardev.END_SECONDS", 0.2)
        chardev, port = serve("stubborn")
        house.until(lambda: port.received == b"here")
        pid = chardev._pid
        begin = time.monotonic()
        chardev.close()
        assert 0.2 <= time.monotonic() - begin < 30
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class TestCodeThatIsWrong:
    @pytest.mark.parametrize(
        ("source", "class_name", "text"),
        [
            ("x = 1", "Foo", "has no 'Foo'"),
            ("x = 1", None, "has neither 'serve' nor just one PortHandler: say 'class'"),
            ("def broken(:", "Foo", "is not Python"),
            ("\0", "Foo", "is not Python"),
        ],
    )
    def test_is_refused_without_running_it(self, house, tmp_path, source, class_name, text):
        path = tmp_path / "code.py"
        path.write_text(source)
        with pytest.raises(ConfigError, match=text):
            house.open(HandlerChardev("h", class_name=class_name, path=str(path)))
        assert not house.connections

    @pytest.mark.parametrize(
        ("class_name", "text"),
        [
            ("Foo", "'class' must be package.module:Name"),
            ("no_such_module_x:Foo", "there is no module 'no_such_module_x'"),
            ("virtserial.no_such:Foo", "there is no module 'virtserial.no_such'"),
            ("math:sin", "there is no module 'math'|has no Python source"),
        ],
    )
    def test_module_that_is_not_there(self, house, class_name, text):
        with pytest.raises(ConfigError, match=text):
            house.open(HandlerChardev("h", class_name=class_name))

    def test_no_such_file(self, house):
        with pytest.raises(ConfigError, match=r"Could not open '/nonexistent\.py': No such file or directory"):
            house.open(HandlerChardev("h", path="/nonexistent.py"))

    @pytest.mark.parametrize(
        ("source", "found"),
        [
            ("async def serve(reader, writer): pass", "serve"),
            ("from virtserial.chardev import handler\nclass One(handler.PortHandler): pass", "One"),
        ],
    )
    def test_name_is_found_by_itself(self, house, tmp_path, source, found):
        path = tmp_path / "code.py"
        path.write_text(source)
        assert house.open(HandlerChardev("h", path=str(path))).attribute == found

    def test_module_is_not_imported_by_the_keeper(self, house, tmp_path):
        path = tmp_path / "code.py"
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Foo: pass")
        house.open(HandlerChardev("h", class_name="Foo", path=str(path)))
        assert not (tmp_path / "ran").exists()
