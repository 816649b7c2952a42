"""State memory: fields that live in a block, and a block that outlives its objects."""

import pytest

from virtserial.errors import StateError
from virtserial.memory import barrier
from virtserial.memory.state import HEADER_SIZE, U8, U16, U32, U64, Record, StateMemory


class Registers(Record):
    SIZE = 20
    small = U8(1)
    short = U16(2)
    word = U32(4)
    long = U64(8)


def test_fields_live_in_the_block():
    block = bytearray(256)
    state = StateMemory(block)
    first, second = Registers(state), Registers(state)
    second.small, second.short, second.word, second.long = 0xFE, 0xFEDC, 0xFEDCBA98, 0xFEDCBA9876543210
    assert block[HEADER_SIZE + 24 :][:16].hex() == "00fedcfe98badcfe1032547698badcfe"
    assert (first.small, first.short, first.word, first.long) == (0, 0, 0, 0)
    again = StateMemory(block)
    assert again.restored
    assert not state.restored
    Registers(again)
    restored = Registers(again)
    assert (restored.small, restored.short, restored.word, restored.long) == (
        0xFE,
        0xFEDC,
        0xFEDCBA98,
        0xFEDCBA9876543210,
    )
    restored.clear()
    assert second.long == 0
    assert isinstance(Registers.long, U64)


@pytest.mark.parametrize(("field", "value"), [("small", 256), ("short", -1), ("word", 1 << 32), ("long", 1 << 64)])
def test_a_field_refuses_what_it_cannot_hold(field, value):
    with pytest.raises(ValueError, match="invalid value"):
        setattr(Registers(StateMemory(bytearray(128))), field, value)


def test_pieces_do_not_overlap_and_the_block_ends():
    state = StateMemory(bytearray(HEADER_SIZE + 16))
    view = state.bytes_at(3)
    assert (len(view), state.allocate(8)) == (3, HEADER_SIZE + 8)
    with pytest.raises(StateError, match="state memory of 80 bytes is too small: 88 are needed"):
        state.allocate(1)


@pytest.mark.parametrize("size", [0, 63, 65, 100])
def test_a_block_of_a_wrong_size_is_refused(size):
    with pytest.raises(StateError, match=f"state memory of {size} bytes"):
        StateMemory(bytearray(size))


def test_a_block_of_another_version_is_refused():
    state = StateMemory(bytearray(64))
    state.u64[1] = 99
    with pytest.raises(StateError, match="of version 99; this program reads version 2"):
        StateMemory(state.u8)


def test_the_fence_may_be_taken_again_and_again():
    for _ in range(3):
        barrier.full()
    assert not barrier._lock.locked()
