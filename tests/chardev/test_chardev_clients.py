"""Several clients on one listening socket: real sockets, a real log, and a port that a test plays."""

import contextlib
import os
import socket

import pytest

from virtserial.accounting import Account
from virtserial.channel.connections import ClientConnection
from virtserial.channel.output_log import MAX_CLIENTS, MAX_WATCHERS, OutputLog, open_again
from virtserial.errors import ConfigError
from virtserial.host_end import clients as clients_module
from virtserial.host_end.client_ends import open_client
from virtserial.host_end.clients import GIVE_BACK, WINDOW
from virtserial.host_end.factory import open_host_end
from virtserial.host_end.hub import HubHostEnd
from virtserial.host_end.log import LogFile, LoggedHostEnd
from virtserial.options.chardev_options import parse_chardev

WORDS = "socket,id=s,path={path},server=on,wait=off,{options}"


class Shared:
    """The keeper's chardev, the worker's host end, a recording port, and who has connected."""

    def __init__(self, house, folder, options):
        self.house = house
        self.path, self.watch_path = str(folder / "s"), str(folder / "w")
        words = WORDS.format(path=self.path, options=options.replace("WATCH", self.watch_path))
        self.chardev = house.open(parse_chardev(words))
        self.left = []
        self.far = []
        self.held = {}
        self.connection, (self.shared_fd,) = house.connections.pop(0)
        self.join()

    def join(self):
        """Make the worker's half of the chardev, and of each client that is there."""
        self.ends = []
        end = open_host_end(self.connection, (os.dup(self.shared_fd),), self.house.loop, shared=self.ends.append)
        self.port = self.house.join(end)
        for place in list(self.held):
            self._add(place)

    def connect(self, *, watch=False):
        far = socket.socket(socket.AF_UNIX)
        far.settimeout(60)
        far.connect(self.watch_path if watch else self.path)
        self.far.append(far)
        self.house.until(lambda: self.house.connections)
        connection, fds = self.house.connections.pop(0)
        assert isinstance(connection, ClientConnection)
        self.held[connection.place] = connection, fds
        self._add(connection.place)
        return far

    def _add(self, place):
        connection, fds = self.held[place]
        copies = [os.dup(fd) for fd in fds]
        end = open_client(connection, copies[:-1], self.house.loop, Account())

        def over():
            for fd in self.held.pop(place)[1]:
                os.close(fd)
            self.left.append(place)
            self.chardev.client_left(place)

        self.ends[0].add_client(place, end, copies[-1], over)

    def write(self, data):
        """Write all of it, as a guest that waits."""
        rest = memoryview(data)

        def written():
            nonlocal rest
            rest = rest[self.port.write(rest) :]
            return not rest

        self.house.until(written)

    def state(self):
        return self.chardev.clients({place: fds[-1] for place, (_, fds) in self.held.items()})

    def read(self, far, size):
        far.setblocking(False)
        got = bytearray()

        def read():
            with contextlib.suppress(BlockingIOError):
                got.extend(far.recv(size - len(got)))
            return len(got) == size

        self.house.until(read)
        return bytes(got)

    def close(self):
        for far in self.far:
            far.close()
        for _, fds in self.held.values():
            for fd in fds:
                os.close(fd)
        os.close(self.shared_fd)


@pytest.fixture
def share(house, tmp_path):
    shared = []

    def make(options):
        shared.append(Shared(house, tmp_path, options))
        return shared[-1]

    yield make
    for each in shared:
        each.close()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(clients_module, "SLOW_SECONDS", 0.1)


def test_output_goes_to_all_and_input_of_all_is_taken(share):
    s = share("clients=3")
    assert s.port.events == []
    a, b = s.connect(), s.connect()
    assert s.port.events == ["opened"]
    s.write(b"to all")
    assert (s.read(a, 6), s.read(b, 6)) == (b"to all", b"to all")
    a.sendall(b"from a ")
    s.house.until(lambda: s.port.received == b"from a ")
    b.sendall(b"from b")
    s.house.until(lambda: s.port.received == b"from a from b")


def test_clients_of_a_flood_take_turns_and_their_reads_stay_whole(share):
    s = share("clients=3")
    s.port.reads = False
    s.port.take = 1000
    far = [s.connect() for _ in range(3)]
    for letter, each in zip(b"abc", far, strict=True):
        each.setblocking(False)
        each.send(bytes([letter]) * 50_000)
    s.house.until(lambda: all(client.end.readable for client in s.ends[0]._clients.values()))
    buffer = bytearray(1000)
    reads = []
    for _ in range(30):
        count = s.ends[0].readv([memoryview(buffer)])
        reads.append(bytes(buffer[:count]))
    assert all(len(set(read)) == 1 for read in reads)
    assert sorted(read[:1] for read in reads[:3]) == [b"a", b"b", b"c"]
    assert [read[:1] for read in reads[:3]] * 10 == [read[:1] for read in reads]


def test_the_port_closes_with_the_last_client_and_opens_with_the_next(share):
    s = share("clients=2")
    a, b = s.connect(), s.connect()
    a.close()
    s.house.until(lambda: s.left)
    assert "closed" not in s.port.events
    b.close()
    s.house.until(lambda: s.port.events[-1] == "closed")
    assert not s.port.end.ended
    c = s.connect()
    assert s.port.events[-1] == "opened"
    s.write(b"new")
    assert s.read(c, 3) == b"new"


def test_one_more_than_clients_waits_until_a_place_is_free(share):
    s = share("clients=2")
    a, _ = s.connect(), s.connect()
    late = socket.socket(socket.AF_UNIX)
    late.connect(s.path)
    s.far.append(late)
    s.house.settle()
    assert not s.house.connections
    a.close()
    s.house.until(lambda: s.house.connections)
    connection, fds = s.house.connections.pop(0)
    s.held[connection.place] = connection, fds
    assert connection.place == s.left[0]


def test_who_comes_late_gets_the_last_bytes_first_even_if_nobody_was_there(share):
    s = share("clients=2,backlog=64k")
    assert s.port.events == ["opened"]
    data = os.urandom(300_000)
    s.write(data)
    late = s.connect()
    s.write(b"and on")
    assert s.read(late, (64 << 10) + 6) == data[-(64 << 10) :] + b"and on"


def test_backlog_that_is_not_full_comes_whole(share):
    s = share("backlog=1M")
    s.write(b"boot log")
    assert s.read(s.connect(), 8) == b"boot log"


def test_a_backlog_that_was_saved_is_for_who_is_there_and_who_comes_later(share):
    s = share("clients=3,backlog=16")
    end, early = s.port.end, s.connect()
    assert (end.backlog_size, end.read_backlog(9)) == (0, b"")
    end.restore_backlog(b"older than what is kept here, newest")
    assert s.read(early, 16) == b"ept here, newest"
    s.write(b" and on")
    assert s.read(early, 7) == b" and on"
    assert s.read(s.connect(), 16) == end.read_backlog(99) == b"e, newest and on"
    assert (end.backlog_size, end.read_backlog(6)) == (16, b"and on")
    # What the guest has said here is newer than any state.
    end.restore_backlog(b"of another time")
    assert end.read_backlog(99) == b"e, newest and on"


def test_a_saved_backlog_reaches_a_part_of_a_hub_with_a_logfile(share):
    s = share("clients=2,backlog=1k")
    hub = HubHostEnd(s.house.loop, "hub")
    assert hub.backlog_size == 0
    hub.join("part", LoggedHostEnd(s.port.end, LogFile("log", os.open(os.devnull, os.O_WRONLY), Account())), list)
    hub.restore_backlog(b"boot log")
    assert (hub.backlog_size, hub.read_backlog(3)) == (8, b"log")
    assert s.read(s.connect(), 8) == b"boot log"
    hub.close()


def test_a_socket_without_a_backlog_restores_none(share):
    s = share("clients=2")
    s.port.end.restore_backlog(b"boot log")
    assert (s.port.end.backlog_size, s.state()["written"]) == (0, 0)


def test_slow_block_holds_the_guest_and_nothing_is_lost(share):
    s = share("clients=2")
    fast, slow = s.connect(), s.connect()
    data = os.urandom(4 << 20)
    got = bytearray()
    fast.setblocking(False)
    rest = memoryview(data)

    def move():
        nonlocal rest
        rest = rest[s.port.write(rest) :]
        with contextlib.suppress(BlockingIOError):
            got.extend(fast.recv(1 << 20))

    for _ in range(100):
        move()
        s.house.loop.run_once(0.001)
    written = len(data) - len(rest)
    assert written < len(data)
    assert s.port.write(rest) == 0
    assert s.state()["dropped"] == 0
    slow.setblocking(False)
    slow_got = bytearray()

    def done():
        move()
        with contextlib.suppress(BlockingIOError):
            slow_got.extend(slow.recv(1 << 20))
        return len(got) == len(slow_got) == len(data)

    s.house.until(done)
    assert got == slow_got == data


def test_slow_drop_loses_the_oldest_and_counts_them(share, impatient):
    s = share("clients=2,slow=drop")
    fast, slow = s.connect(), s.connect()
    data = os.urandom(6 << 20)
    got = bytearray()
    fast.setblocking(False)
    rest = memoryview(data)

    def fast_has_all():
        nonlocal rest
        rest = rest[s.port.write(rest) :]
        with contextlib.suppress(BlockingIOError):
            got.extend(fast.recv(1 << 20))
        return len(got) == len(data)

    s.house.until(fast_has_all)
    assert got == data
    slow.setblocking(False)
    slow_got = bytearray()

    def caught_up():
        with contextlib.suppress(BlockingIOError):
            slow_got.extend(slow.recv(1 << 20))
        return len(slow_got) + s.state()["dropped"] == len(data)

    s.house.until(caught_up)
    dropped = s.state()["dropped"]
    assert dropped > 0
    assert data.endswith(slow_got[-WINDOW // 2 :])
    # It has caught up: it counts again.
    s.write(b"fresh")
    assert s.read(slow, 5) == b"fresh"
    assert s.state()["dropped"] == dropped


def test_slow_disconnect_ends_the_client_that_does_not_read(share, impatient):
    s = share("clients=2,slow=disconnect")
    fast, _slow = s.connect(), s.connect()
    fast.setblocking(False)
    data = os.urandom(4 << 20)
    got = bytearray()
    rest = memoryview(data)

    def fast_has_all():
        nonlocal rest
        rest = rest[s.port.write(rest) :]
        with contextlib.suppress(BlockingIOError):
            got.extend(fast.recv(1 << 20))
        return len(got) == len(data)

    s.house.until(fast_has_all)
    assert got == data
    assert s.left == [1]
    assert s.state()["disconnected"] == 1
    assert [client["peer"] for client in s.state()["clients"]] == [f"unix:{s.path},server=on"]


def test_a_slow_client_that_leaves_frees_the_guest(share):
    s = share("clients=2")
    fast, slow = s.connect(), s.connect()
    fast.setblocking(False)
    data = bytes(100_000)

    def full():
        with contextlib.suppress(BlockingIOError):
            fast.recv(1 << 20)
        return s.port.write(data) == 0

    s.house.until(full)
    s.port.events.clear()
    slow.close()
    with contextlib.suppress(BlockingIOError):
        while fast.recv(1 << 20):
            pass
    s.house.until(lambda: "writable" in s.port.events)


def test_the_rest_of_a_client_that_has_left_is_kept_beside_the_next_until_its_place_is_needed(share, monkeypatch):
    monkeypatch.setattr("virtserial.host_end.linger.LINGER_SECONDS", 0.05)
    s = share("clients=2")
    s.port.reads = False
    first = s.connect()
    first.sendall(b"last words")
    s.house.until(lambda: "readable" in s.port.events)
    first.close()
    s.house.settle(0.05)
    second = s.connect()
    s.house.settle(0.2)
    assert s.left == []
    third = socket.socket(socket.AF_UNIX)
    third.connect(s.path)
    s.far.append(third)
    s.house.until(lambda: s.left == [0])
    assert s.ends[0].input_discarded == len(b"last words")
    second.close()


def test_watchers_get_all_and_can_send_nothing(share):
    s = share("clients=1,watch=WATCH")
    watcher = s.connect(watch=True)
    client = s.connect()
    s.write(b"seen")
    assert s.read(watcher, 4) == s.read(client, 4) == b"seen"
    with pytest.raises(BrokenPipeError):
        watcher.send(b"x")
    client.sendall(b"heard")
    s.house.until(lambda: s.port.received == b"heard")
    assert [each["watches"] for each in s.state()["clients"]] == [False, True]
    assert {each["pid"] for each in s.state()["clients"]} == {os.getpid()}
    watcher.close()
    s.house.until(lambda: s.left == [MAX_CLIENTS])
    assert s.port.events.count("closed") == 0


def test_one_more_watcher_than_there_are_places_waits(share):
    s = share("watch=WATCH")
    watchers = [s.connect(watch=True) for _ in range(MAX_WATCHERS)]
    late = socket.socket(socket.AF_UNIX)
    late.connect(s.watch_path)
    s.far.append(late)
    s.house.settle()
    assert not s.house.connections
    s.write(b"all")
    assert {s.read(each, 3) for each in watchers} == {b"all"}


def test_memory_is_bounded_by_the_backlog_and_the_window(share):
    s = share("clients=2,backlog=128k")
    far = s.connect()
    for _ in range(40):
        s.write(bytes(128 << 10))
        assert s.read(far, 128 << 10) == bytes(128 << 10)
    s.house.settle(0.02)
    used = os.fstat(s.shared_fd).st_blocks * 512
    assert used <= (128 << 10) + WINDOW + GIVE_BACK + (64 << 10)


def test_a_successor_goes_on_where_each_client_stood(share):
    s = share("clients=3,backlog=16k,slow=drop")
    fast, slow = s.connect(), s.connect()
    data = os.urandom(2 << 20)
    got = bytearray()
    fast.setblocking(False)
    written = 0
    while written < len(data):
        count = s.port.write(data[written : written + 100_000])
        written += count
        s.house.loop.run_once(0.001)
        with contextlib.suppress(BlockingIOError):
            got.extend(fast.recv(1 << 20))
        if not count:
            break
    # The predecessor is gone without a word; what it had written and sent is in the kernel's hands.
    before = s.port.end
    s.join()
    before.close()
    assert s.port.events[0] == "opened"
    slow.setblocking(False)
    slow_got = bytearray()

    def done():
        nonlocal written
        written += s.port.write(data[written : written + 100_000])
        for far, into in ((fast, got), (slow, slow_got)):
            with contextlib.suppress(BlockingIOError):
                into.extend(far.recv(1 << 20))
        return len(got) == len(slow_got) == len(data)

    s.house.until(done)
    assert got == slow_got == data
    assert s.state()["dropped"] == 0
    late = s.connect()
    assert s.read(late, 16 << 10) == data[-(16 << 10) :]


def test_a_skip_that_was_cut_short_is_finished_and_counted_once():
    log = OutputLog.create()
    cursor = open_again(log.fileno())
    try:
        start = os.lseek(cursor, log.first, os.SEEK_SET)
        finish, log.finish_skip = log.finish_skip, lambda *_: None
        log.skip(5, cursor, start, start + 1000)  # killed here
        assert log.dropped(5) == 0
        for _ in range(2):
            finish(5, cursor)
        assert log.dropped(5) == 1000
        assert os.lseek(cursor, 0, os.SEEK_CUR) == start + 1000
        log.forget(5)
        assert (log.dropped(5), log.dropped_before) == (0, 1000)
    finally:
        os.close(cursor)
        log.close()


def test_numbers_that_a_worker_has_made_up_do_not_end_the_keeper():
    log = OutputLog.create()
    try:
        for word in range(len(log._words)):
            log._words[word] = (1 << 64) - 1
        log.forget(0)
        log.forget(1)
        assert log.dropped_before < 1 << 64
    finally:
        log.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("clients=0", "Parameter 'clients' expects a number from 1 to 64"),
        ("clients=65", "Parameter 'clients' expects a number from 1 to 64"),
        ("backlog=65M", "Parameter 'backlog' expects at most 64M"),
        ("slow=maybe", "Parameter 'slow' expects one of block, drop, disconnect"),
        ("clients=2,mux=on", "'clients' option is incompatible with 'mux=on'"),
        ("clients=2,server=off", "'clients' option is incompatible with socket in client connect mode"),
    ],
)
def test_options_that_cannot_be(options, text):
    words = "socket,id=s,path=/nowhere/s," + ("" if "server" in options else "server=on,wait=off,") + options
    with pytest.raises(ConfigError) as error:
        parse_chardev(words)
    assert text in str(error.value)


def test_one_client_is_served_as_ever():
    assert not parse_chardev("socket,id=s,path=/nowhere/s,server=on,wait=off,clients=1").is_shared
