"""JSON as QEMU's monitor reads it.  What is expected was observed on QEMU 11.1.3 (which counts one column too many
after an error in the same line, and has the value's column for a duplicate key)."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rounds import rounds

from virtserial.monitor.json_stream import MAX_BYTES, MAX_NESTING, MAX_TOKENS, JsonError, JsonStream

ERROR = "1:{}: JSON parse error, {}"


def read(*pieces):
    """Every value and the text of every error."""
    stream = JsonStream()
    found = [value for piece in pieces for value in stream.feed(piece)]
    return [str(value) if isinstance(value, JsonError) else value for value in found]


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | FLOATS
TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20)
VALUES = st.recursive(SCALARS | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)


@given(VALUES, st.booleans(), st.integers(1, 7))
def test_what_json_writes_is_read_in_any_pieces(value, ascii_only, size):
    text = json.dumps(value, ensure_ascii=ascii_only).encode() + b"\n"
    assert read(*(text[start : start + size] for start in range(0, len(text), size))) == [value]


@given(st.lists(st.binary(max_size=30), max_size=8))
def test_any_bytes_give_values_or_errors_and_ff_clears_them_all(pieces):
    assert read(*pieces, b"\xff\n", b'{"a": 1}')[-1] == {"a": 1}


TOKENS = st.sampled_from([b"{", b"}", b"[", b"]", b":", b",", b'"a"', b"1 ", b"null ", b"x ", b"\n"])


@given(st.lists(TOKENS, max_size=40))
def test_any_tokens_are_read_the_same_whole_and_in_pieces(tokens):
    whole = b"".join(tokens)
    assert read(whole) == read(*(whole[index : index + 1] for index in range(len(whole))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"{x}\n", [ERROR.format(2, "expecting key")]),
        (b'{"execute":"query-status",}', [ERROR.format(27, "expecting key")]),
        (b'{"execute" "query-status"}', [ERROR.format(12, "expecting ':'")]),
        (b'{"execute":"query-status" "a":1}', [ERROR.format(27, "expected ',' or '}'")]),
        (b'{"execute":"query-status"]', [ERROR.format(26, "expected ',' or '}'")]),
        (b'{"execute":"query-status\\q"}', [ERROR.format(12, "invalid escape sequence in string")]),
        (
            b'{"execute":"query-\x01status"}',
            [ERROR.format(12, "stray '\"query-\x01'"), ERROR.format(27, "expecting value")],
        ),
        (b'{"execute":nul}', [ERROR.format(12, "invalid keyword 'nul'")]),
        (b'{"execute":"x","execute":"y"}', [ERROR.format(16, "duplicate key")]),
        (b"}", [ERROR.format(1, "expecting value")]),
        (b",", [ERROR.format(1, "expecting value")]),
        (b"-\n", [ERROR.format(1, "stray '-\n'")]),
        (b'{"execute":"\\ud800"}', [ERROR.format(12, "\\ud800 is not a valid Unicode character")]),
        (b'{"execute":"\xc3"}', [ERROR.format(12, "invalid UTF-8 sequence in string")]),
        (b"%d\n", [ERROR.format(1, "stray '%'")]),
        (b'{"execute":%s}', [ERROR.format(12, "stray '%'"), ERROR.format(14, "expecting value")]),
        (b"x\xff", [ERROR.format(1, "invalid keyword 'x'"), ERROR.format(2, "stray '�'")]),
        (b'[\xff{"a":1}', [ERROR.format(2, "stray '�'"), {"a": 1}]),
        (b"{'a':'b\"'}", [{"a": 'b"'}]),
        (b'{"a":\n1}{"b":2}', [{"a": 1}, {"b": 2}]),
        (b'"\\u00e9\\ud83d\\ude00 \\/"', ["é😀 /"]),
        (b"12345678901234567890123 ", [12345678901234567890123.0]),
        (b"18446744073709551615 1.50 ", [(1 << 64) - 1, 1.5]),
    ],
)
def test_values_and_errors_are_qemus(text, expected):
    assert read(text) == expected


def test_lines_are_counted():
    assert read(b'{"a":1}\n\n  {x}')[1] == "3:4: JSON parse error, expecting key"


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_a_million_nested_values_are_one_error(opening):
    answers = read(opening * 1_000_000, b"\n", b'{"a": 1}')
    assert answers == ["JSON nesting depth limit exceeded", {"a": 1}]


def test_the_deepest_nesting_is_read_and_can_be_answered():
    text = b"[" * MAX_NESTING + b"]" * MAX_NESTING
    (value,) = read(text)
    assert json.dumps(value).encode() == text
    assert json.dumps(value, indent=4)


def test_many_tokens_are_an_error():
    assert read(b"[" + b"1," * MAX_TOKENS, b"\n[]") == ["JSON token count limit exceeded", []]


@pytest.mark.parametrize("start", [b'"', b'{"execute":"', b"1", b"a", b"[ "])
def test_a_value_without_an_end_takes_no_memory(start):
    stream = JsonStream()
    piece = (b"1" if start == b"1" else b"a") * (1 << 16)
    errors = list(stream.feed(start))
    tracemalloc.start()
    began = time.monotonic()
    try:
        for _ in range(rounds(1 << 11, 1 << 14)):  # of 64 KiB
            errors += stream.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [str(error) for error in errors] == ["JSON token size limit exceeded"]
    assert peak < 4 * MAX_BYTES
    assert time.monotonic() - began < 60
    assert list(stream.feed(b'\n{"a": 1}')) == [{"a": 1}]
