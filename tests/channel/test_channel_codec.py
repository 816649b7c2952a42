"""The codec: what goes in comes out, and whatever else comes in is refused with a StateError, nothing worse."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtserial.channel.codec import ANY_INT, OneOf, Range, decode, encode
from virtserial.channel.messages import FROM_KEEPER, FROM_WORKER, DmaMap, GuestOpen, Pong, Start
from virtserial.channel.record import record, replace
from virtserial.errors import StateError


@record
class Inner:
    number: Annotated[int, Range(1, 3)]


@record
class Other:
    text: str


@record
class Everything:
    whole: int
    real: float
    flag: bool
    text: str
    data: bytes
    word: Literal["a", "b"]
    maybe: Annotated[int, Range(0, 9)] | None
    many: tuple[int, ...]
    pair: tuple[str, bool]
    named: Mapping[str, bool]
    free: Mapping[str, object]
    inner: Inner
    either: Inner | Other | None
    late: int = 7


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FINITE_JSON = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False)


def values(hint):
    """A strategy for what a field with this annotation may hold."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return st.integers(*arguments[1])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values, arguments))
    if origin is tuple and arguments[-1] is ...:
        return st.lists(values(arguments[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=8), values(arguments[1]), max_size=4)
    simple = {
        int: st.integers(*ANY_INT),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        str: st.text(st.characters(), max_size=20),
        bytes: st.binary(max_size=40),
        types.NoneType: st.none(),
        object: FINITE_JSON,
    }
    return simple[hint] if hint in simple else records(hint)


def records(cls):
    """A strategy for records of a class."""
    return st.builds(cls, **{name: values(hint) for name, hint in get_type_hints(cls, include_extras=True).items()})


MESSAGES = [(union, cls) for union in (FROM_KEEPER, FROM_WORKER) for cls in union.classes.values()]


@given(st.sampled_from([(OneOf([Everything]), Everything), *MESSAGES]), st.data())
def test_a_record_comes_back_as_it_was(known, data):
    union, cls = known
    sent = data.draw(records(cls))
    text = json.dumps(encode(sent), allow_nan=False)
    come = decode(union, json.loads(text))
    assert type(come) is cls
    assert come == sent
    assert decode(cls, json.loads(text)) == sent


@given(st.sampled_from([Everything, OneOf([Inner, Everything]), FROM_KEEPER, FROM_WORKER]), ANY_JSON)
def test_random_json_is_refused(kind, value):
    with pytest.raises(StateError):
        decode(kind, value)


@given(st.sampled_from(MESSAGES), st.data())
def test_what_is_changed_is_refused_or_another_message(known, data):
    """One field removed, added or of another value: what is not refused says what was sent, and defaults."""
    union, cls = known
    message = encode(data.draw(records(cls)))
    key = data.draw(st.sampled_from([*message, "more"]))
    if data.draw(st.booleans()):
        message.pop(key, None)
    else:
        message[key] = data.draw(ANY_JSON)
    try:
        come = decode(union, message)
    except StateError:
        return
    assert message.items() <= encode(come).items()
    json.dumps(encode(come), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"iova": -1}, "DmaMap.iova: -1 is no whole number from 0 to 18446744073709551615"),
        ({"iova": 1 << 64}, "DmaMap.iova: 18446744073709551616 is no whole number"),
        ({"iova": True}, "DmaMap.iova: True is no whole number"),
        ({"iova": 1.0}, "DmaMap.iova: 1.0 is no whole number"),
        ({"iova": math.inf}, "DmaMap.iova: inf is no whole number"),
        ({"iova": "1"}, "DmaMap.iova: '1' is no whole number"),
        ({"iova": None}, "DmaMap.iova: None is no whole number"),
        ({"iova": [1] * 1000}, "DmaMap.iova: a list is no whole number"),
        ({"more": 1}, "DmaMap: missing or unknown: 'more'"),
        ({"type": "Start"}, "type 'Start' is none of Ready"),
        ({"type": ["DmaMap"]}, "type a list is none of"),
        ({"type": None}, "type None is none of"),
    ],
)
def test_a_refusal_says_which_field_and_why(change, says):
    with pytest.raises(StateError, match="^" + says):
        decode(FROM_WORKER, encode(DmaMap(0, 1, 2, 3, 4)) | change)


def test_missing_field_is_named():
    message = encode(GuestOpen(0, 1, 2, True))
    del message["number"], message["open"]
    with pytest.raises(StateError, match="GuestOpen: missing or unknown: 'number', 'open'"):
        decode(FROM_WORKER, message)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**400, "1", None, True])
def test_no_number_that_is_not_finite(number):
    with pytest.raises(StateError, match=r"Real\.real: .* is no finite number"):
        decode(Real, {"type": "Real", "real": number})


@record
class Real:
    real: float


@pytest.mark.parametrize("text", ["a", "====", "YWJj YWJj", "YWJj\n", 1, None])
def test_what_is_no_base64_is_refused(text):
    with pytest.raises(StateError, match=r"Data\.data: .* is no base64"):
        decode(Data, {"type": "Data", "data": text})


@record
class Data:
    data: bytes


def test_field_with_a_default_may_be_missing():
    @record
    class WithDefault:
        number: int = 3

    assert decode(WithDefault, {"type": "WithDefault"}) == WithDefault() == WithDefault(3)


def test_long_text_is_cut_short_in_a_refusal():
    with pytest.raises(StateError) as refused:
        decode(FROM_WORKER, encode(Pong(1)) | {"number": "9" * 100_000})
    assert len(str(refused.value)) < 200


class TestRecord:
    def test_is_frozen_and_slotted(self):
        inner = Inner(2)
        with pytest.raises(AttributeError):
            inner.number = 3
        with pytest.raises(AttributeError):
            inner.more = 3
        assert not hasattr(inner, "__dict__")

    def test_fields_come_by_place_or_by_name(self):
        assert DmaMap(1, 2, 3, 4, offset=5) == DmaMap(controller=1, iova=2, size=3, prot=4, offset=5)
        assert repr(Inner(1)) == "Inner(number=1)"
        assert {Inner(1), Inner(1), Inner(2)} == {Inner(1), Inner(2)}
        assert Inner(1) != Other("1")

    @pytest.mark.parametrize("fields", [(), (1, 2)])
    def test_wrong_number_of_fields(self, fields):
        with pytest.raises(TypeError):
            Inner(*fields)

    def test_unknown_or_doubled_field(self):
        with pytest.raises(TypeError):
            Start(more=1)
        with pytest.raises(TypeError):
            Inner(1, number=1)

    def test_replace_makes_another(self):
        assert replace(DmaMap(1, 2, 3, 4, 5), size=9) == DmaMap(1, 2, 9, 4, 5)

    def test_a_record_that_derives_from_another_has_its_fields_first(self):
        @record
        class More(Inner):
            flag: bool = True

        assert More(1) == More(number=1, flag=True) != Inner(1)
        assert decode(More, encode(More(2, False))) == More(2, False)

    def test_match(self):
        match GuestOpen(0, 1, 2, True):
            case GuestOpen(controller, number, open=True):
                assert (controller, number) == (0, 1)
            case _:
                pytest.fail("it does not match")
