"""Receive buffers that a driver posts again and again: reused as long as nothing about them has changed."""

import pytest
from support.ring_builder import NEXT, WRITE

from virtserial.errors import AddressError, DriverError

COUNT = 32
EVERYTHING = 1 << 20


class Posting:
    """A driver with COUNT buffers of 64 bytes, each in a descriptor of its own that it always posts in."""

    def __init__(self, house):
        self.house = house
        self.buffers = [house.memory.allocate(64) for _ in range(COUNT)]
        for head, address in enumerate(self.buffers):
            house.ring.describe(head, address, 64, WRITE)

    def post(self, *heads):
        self.house.ring.offer(*(heads or range(COUNT)))

    def take(self, max_bytes=EVERYTHING):
        return self.house.queue.ring.writable_chains(256, max_bytes)

    def round(self, mark, *heads):
        """Post, fill each buffer with its mark and head, take back; what lies at each head's address then."""
        self.post(*heads)
        batch = self.take()
        data = b"".join(bytes((mark, head)) * 32 for head in batch.heads)
        for view in batch.views:
            view[:] = data[: len(view)]
            data = data[len(view) :]
        self.house.queue.ring.store(batch, EVERYTHING)
        self.house.queue.ring.give_back(batch.heads, [64] * len(batch.heads))
        return [self.house.memory.read(self.buffers[head], 64) for head in heads or range(COUNT)]


@pytest.fixture
def posting(make_house):
    return Posting(make_house(size=64))


def expected(mark, heads=range(COUNT)):
    return [bytes((mark, head)) * 32 for head in heads]


def test_buffers_posted_again_are_filled_again_in_any_order(posting):
    assert posting.round(1) == expected(1)
    assert posting.round(2) == expected(2)
    backwards = range(COUNT)[::-1]
    assert posting.round(3, *backwards) == expected(3, backwards)


def test_some_of_them_then_others(posting):
    assert posting.round(1, *range(20)) == expected(1, range(20))
    assert posting.round(2, *range(10, COUNT)) == expected(2, range(10, COUNT))
    assert posting.round(3) == expected(3)


def test_a_descriptor_that_points_elsewhere_now_is_followed(posting):
    posting.round(1)
    posting.buffers[7] = posting.house.memory.allocate(64)
    posting.house.ring.describe(7, posting.buffers[7], 64, WRITE)
    assert posting.round(2) == expected(2)


def test_a_chain_that_has_grown_is_walked(posting):
    posting.round(1)
    more = posting.house.memory.allocate(100)
    posting.house.ring.describe(7, posting.buffers[7], 64, WRITE | NEXT, 40)
    posting.house.ring.describe(40, more, 100, WRITE)
    posting.post()
    batch = posting.take()
    assert batch.ends[7] - batch.ends[6] == 164
    posting.house.queue.ring.give_back(batch.heads, [0] * COUNT)
    posting.post()
    assert posting.take().ends == batch.ends


def test_a_batch_ends_with_the_chain_that_reaches_the_limit(posting):
    posting.round(1)
    posting.round(2)
    posting.post()
    for limit, count in ((EVERYTHING, COUNT), (64 * COUNT, COUNT), (129, 3), (128, 2), (1, 1)):
        batch = posting.take(limit)
        assert len(batch.heads) == count
        assert min(limit, 64 * COUNT) <= batch.ends[-1] <= 64 * count


def test_the_lengths_of_filled_buffers_are_those_of_a_first_look(posting):
    posting.post()
    first = posting.take()
    known = posting.take()
    assert (first.each, known.each) == (0, 0 if known.bounces or len(known.views) > COUNT else 64)
    assert list(known.ends) == first.ends
    for count in (1, 63, 64, 65, 130, 64 * COUNT):
        expected = [64] * ((count - 1) // 64) + [(count - 1) % 64 + 1]
        assert first.lengths(count) == known.lengths(count) == expected


def test_buffers_of_different_lengths_are_not_taken_for_known(posting):
    posting.house.ring.describe(9, posting.buffers[9], 48, WRITE)
    posting.post()
    for _ in range(2):
        batch = posting.take()
        assert batch.each == 0
        assert batch.lengths(64 * 9 + 48 + 1)[8:] == [64, 48, 1]


def test_a_head_beyond_the_table_is_refused(posting):
    posting.round(1)
    posting.round(2)
    posting.post(*range(COUNT - 1), 64)
    with pytest.raises(DriverError, match="head 64 is outside the descriptor table of 64"):
        posting.take()


def test_a_head_given_twice_is_refused(posting):
    posting.round(1)
    posting.round(2)
    posting.post(*range(COUNT - 1), 3)
    with pytest.raises(DriverError, match="made available again"):
        posting.take()


def test_buffers_in_memory_that_was_unmapped_are_refused(posting):
    posting.round(1)
    posting.round(2)
    posting.house.table.clear()
    posting.post()
    with pytest.raises(AddressError, match="not mapped"):
        posting.take()


def test_a_changed_memory_map_alone_makes_it_look_anew(posting):
    posting.round(1)
    posting.round(2)
    removed = posting.house.table.clear()
    for region in removed:
        posting.house.table.map(region)
    assert posting.round(3) == expected(3)
