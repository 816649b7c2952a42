"""The event loop: descriptors, timers, turns."""

import os
import resource
import time
from functools import partial

import pytest

from virtserial.loop import EPOLLET, EPOLLIN, EPOLLOUT, EventLoop


@pytest.fixture
def pipe():
    fds = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield fds
    for fd in fds:
        os.close(fd)


def test_a_ready_descriptor_calls_back_and_an_unwatched_one_does_not(loop, pipe):
    read, write = pipe
    seen = []
    loop.watch(read, EPOLLIN, seen.append)
    loop.run_once(0)
    assert seen == []
    os.write(write, b"x")
    loop.run_once(1)
    loop.run_once(1)
    assert seen == [EPOLLIN, EPOLLIN]
    loop.unwatch(read)
    loop.unwatch(read)
    loop.run_once(0)
    assert len(seen) == 2


def test_edges_come_once_and_again_after_a_rewatch(loop, pipe):
    read, write = pipe
    seen = []
    loop.watch(read, EPOLLIN | EPOLLET, seen.append)
    os.write(write, b"x")
    loop.run_once(1)
    loop.run_once(0)
    assert len(seen) == 1
    loop.rewatch(read, EPOLLIN | EPOLLET)
    loop.run_once(0)
    assert len(seen) == 2


def test_a_regular_file_cannot_be_watched(loop, tmp_path):
    with (tmp_path / "file").open("wb") as file, pytest.raises(PermissionError):
        loop.watch(file.fileno(), EPOLLOUT, print)
    loop.run_once(0)


def test_a_callback_may_unwatch_another_that_is_ready_too(loop):
    pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
    seen = []

    def first_come(fd, other):
        seen.append(fd)
        loop.unwatch(other)

    (one, _), (two, _) = pairs
    loop.watch(one, EPOLLIN, lambda _: first_come(one, two))
    loop.watch(two, EPOLLIN, lambda _: first_come(two, one))
    for _, write in pairs:
        os.write(write, b"x")
    loop.run_once(1)
    assert len(seen) == 1
    for pair in pairs:
        for fd in pair:
            os.close(fd)


def test_a_new_descriptor_with_an_old_number_gets_no_event_of_the_old_one(loop):
    """A client that came when a VMM left was taken for one that had hung up: it was never answered."""
    fds = [fd for _ in range(2) for fd in os.pipe2(os.O_CLOEXEC)]
    one, write_one, two, write_two = fds
    seen, stale = [], []

    def first_come(fd, other):
        seen.append(fd)
        loop.unwatch(fd)
        loop.unwatch(other)
        os.dup2(quiet, other, inheritable=False)
        loop.watch(other, EPOLLIN, stale.append)

    quiet, write_quiet = os.pipe2(os.O_CLOEXEC)
    loop.watch(one, EPOLLIN, lambda _: first_come(one, two))
    loop.watch(two, EPOLLIN, lambda _: first_come(two, one))
    os.write(write_one, b"x")
    os.write(write_two, b"x")
    loop.run_once(1)
    assert len(seen) == 1
    assert stale == []
    os.write(write_quiet, b"x")
    loop.run_once(1)
    assert stale == [EPOLLIN]
    for fd in (*fds, quiet, write_quiet):
        os.close(fd)


def test_timers_run_in_order_not_early_and_not_when_cancelled(loop):
    seen = []
    start = loop.now()
    loop.call_later(0.03, lambda: seen.append("late"))
    loop.call_later(0.0005, lambda: seen.append("soon"))
    cancelled = loop.call_later(0.01, lambda: seen.append("never"))
    loop.call_at(start, lambda: seen.append("due"))
    cancelled.cancel()
    while len(seen) < 3:
        loop.run_once()
    assert seen == ["due", "soon", "late"]
    assert loop.now() - start >= 0.03


def test_short_timers_do_not_wait_for_whole_milliseconds(loop):
    waits = []
    for _ in range(20):
        start = time.monotonic()
        seen = []
        loop.call_later(0.0002, partial(seen.append, 1))
        while not seen:
            loop.run_once()
        waits.append(time.monotonic() - start)
    assert 0.0002 <= min(waits) < 0.001


@pytest.fixture
def many_descriptors():
    """Occupies every descriptor up to 1,023, as a process with many ports does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    opened = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
    while opened[-1] < 1023:
        opened.append(os.dup(opened[0]))
    yield
    for fd in opened:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_short_waits_work_with_more_than_1023_descriptors(many_descriptors):
    loop = EventLoop()
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        seen = []
        loop.watch(read, EPOLLIN, lambda _: seen.append(os.read(read, 1)))
        loop.call_later(0.0005, lambda: seen.append("due"))
        os.write(write, b"x")
        loop.run_once(0.0002)
        while len(seen) < 2:
            loop.run_once()
        assert set(seen) == {b"x", "due"}
    finally:
        loop.close()
        os.close(read)
        os.close(write)


def test_a_cancelled_timer_does_not_shorten_the_wait(loop):
    loop.call_later(0.001, print).cancel()
    start = time.monotonic()
    loop.run_once(0.02)
    assert time.monotonic() - start >= 0.02


def test_a_timer_waits_no_longer_than_asked(loop):
    loop.call_later(10, print)
    start = time.monotonic()
    loop.run_once(0.005)
    assert time.monotonic() - start < 5


def test_a_turn_added_in_a_turn_comes_after_a_look_at_the_descriptors(loop, pipe):
    read, write = pipe
    seen = []
    loop.watch(read, EPOLLIN, lambda _: seen.append("descriptor"))

    def turn():
        seen.append("turn")
        os.write(write, b"x")
        if seen.count("turn") < 3:
            loop.add_turn(turn)

    loop.add_turn(turn)
    for _ in range(3):
        loop.run_once(1)
    assert seen == ["turn", "descriptor", "turn", "descriptor", "turn"]


def test_a_turn_that_is_added_again_before_it_comes_is_one_turn(loop):
    class Task:
        turns = 0

        def turn(self):
            self.turns += 1

    task, other = Task(), Task()
    for _ in range(5):
        loop.add_turn(task.turn)
        loop.add_turn(other.turn)
    loop.run_once(0)
    loop.run_once(0)
    assert (task.turns, other.turns) == (1, 1)


def test_run_serves_until_stop(loop):
    seen = []

    def turn():
        seen.append(1)
        if len(seen) == 5:
            loop.stop()
        loop.add_turn(turn)

    loop.add_turn(turn)
    loop.run()
    assert len(seen) == 5
