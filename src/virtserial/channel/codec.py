"""One codec for records (channel/record.py): a record becomes a dict that JSON can carry, and back.

The other process may be an old one, a broken one or one that a guest has taken over, so decoding takes nothing on
trust.  What a field may hold is its annotation:

| annotation | in JSON | accepted |
|---|---|---|
| int | number | whole, from -2**63 to 2**64 - 1; bool is none |
| Annotated[int, Range(a, b)] | number | from a to b |
| float | number | finite |
| bool, str | the same | |
| Literal["a", "b"] | string | one of these |
| bytes | base64 | |
| X | None | X or null | |
| tuple[X, ...], tuple[X, Y] | list | of any length; of this length |
| Mapping[str, X] | object | keys are str |
| object | anything | numbers are finite; for what another room reads |
| a record | object with "type" | all fields that have no default, and no others |
| A | B of records | the same | "type" says which |

A decoder is made when something of its type first comes: to start costs nothing.  Modules of records do without
`from __future__ import annotations`, or each annotation would be compiled then (named_tuple.py says what that costs).
"""

from __future__ import annotations

import binascii
import math
import types
from collections.abc import Mapping
from functools import partial
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from virtserial.errors import StateError
from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Decoder = Callable[[object], Any]

T = TypeVar("T")
TAG = "type"
"""The key under which a record's class is named."""


class Range(NamedTuple):
    """The whole numbers that a field may hold, both ends included."""

    lowest: int
    highest: int


ANY_INT = Range(-(1 << 63), (1 << 64) - 1)
U16 = Annotated[int, Range(0, 0xFFFF)]
U32 = Annotated[int, Range(0, 0xFFFFFFFF)]
U64 = Annotated[int, Range(0, (1 << 64) - 1)]


class OneOf(Generic[T]):
    """A union of records, for `decode`: `OneOf[A | B]((A, B))`.

    Attributes:
        classes: by name.
    """

    def __init__(self, classes: Iterable[type[T]]) -> None:
        self.classes: dict[object, type[T]] = {each.__name__: each for each in classes}


def encode(record: object) -> dict[str, object]:
    """Return a record as JSON can carry it."""
    fields: dict[str, object] = {TAG: type(record).__name__}
    for name in type(record).__match_args__:  # type: ignore[attr-defined]
        fields[name] = _encoded(getattr(record, name))
    return fields


def _encoded(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return binascii.b2a_base64(value, newline=False).decode()
    if isinstance(value, (tuple, list)):
        return [_encoded(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _encoded(each) for key, each in value.items()}
    return encode(value)


def decode(kind: type[T] | OneOf[T], value: object) -> T:
    """Return the record that `encode` was given.

    Args:
        kind: the record's class, or the classes that it may be of.
        value: as JSON carries it.

    Raises:
        StateError: it is no such record; the text says which field, and what is wrong.
    """
    if isinstance(kind, OneOf):
        tag = value.get(TAG) if isinstance(value, dict) else None
        if not isinstance(tag, str) or tag not in kind.classes:
            raise StateError(f"type {_shown(tag)} is none of {', '.join(map(str, kind.classes))}")
        kind = kind.classes[tag]
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = _decoder(kind)
    decoded: T = decoder(value)
    return decoded


_decoders: dict[type, Decoder] = {}


def _shown(value: object) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _decoder(annotation: object) -> Decoder:
    """Make what decodes a field of this annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _whole_number(arguments[1])
    if origin is Literal:
        return _choice(arguments)
    if origin in (Union, types.UnionType):
        return _union(annotation)
    if origin is tuple:
        return _list(_decoder(arguments[0])) if arguments[-1] is ... else _fixed_list(list(map(_decoder, arguments)))
    if origin is Mapping:
        return _object_of(_decoder(arguments[1]))
    if isinstance(annotation, type):
        return _SIMPLE.get(annotation) or _record(annotation)
    raise TypeError(f"the codec knows no {annotation}")


def _record(cls: type) -> Decoder:
    fields = {name: _decoder(hint) for name, hint in get_type_hints(cls, include_extras=True).items()}
    needed = fields.keys() - cls._defaults.keys()  # type: ignore[attr-defined]
    known = {TAG, *fields}
    name = cls.__name__

    def decode_record(value: object) -> object:
        if not isinstance(value, dict) or value.get(TAG) != name:
            raise StateError(f"{_shown(value)} is no {name}")
        if not value.keys() <= known or not needed <= value.keys():
            wrong = ", ".join(sorted(map(_shown, (value.keys() - known) | (needed - value.keys()))))
            raise StateError(f"{name}: missing or unknown: {wrong}")
        decoded = {}
        for field, decode_field in fields.items():
            if field in value:
                try:
                    decoded[field] = decode_field(value[field])
                except StateError as error:
                    raise StateError(f"{name}.{field}: {error}") from None
        return cls(**decoded)

    return decode_record


def _union(annotation: object) -> Decoder:
    present = [each for each in get_args(annotation) if each is not types.NoneType]
    if len(present) == 1:
        decode_present = _decoder(present[0])
    else:
        one_of = OneOf[object](present)
        decode_present = partial(decode, one_of)
    if len(present) == len(get_args(annotation)):
        return decode_present
    return lambda value: None if value is None else decode_present(value)


def _whole_number(limits: Range) -> Decoder:
    lowest, highest = limits

    def decode_number(value: object) -> int:
        if type(value) is not int or not lowest <= value <= highest:
            raise StateError(f"{_shown(value)} is no whole number from {lowest} to {highest}")
        return value

    return decode_number


def _finite_number(value: object) -> float:
    try:
        if type(value) in (int, float) and math.isfinite(number := float(value)):  # type: ignore[arg-type]
            return number
    except OverflowError:
        pass
    raise StateError(f"{_shown(value)} is no finite number")


def _of_class(cls: type) -> Decoder:
    def decode_same(value: object) -> object:
        if type(value) is not cls:
            raise StateError(f"{_shown(value)} is no {cls.__name__}")
        return value

    return decode_same


def _choice(choices: tuple[object, ...]) -> Decoder:
    def decode_choice(value: object) -> object:
        if not isinstance(value, str) or value not in choices:
            raise StateError(f"{_shown(value)} is none of {', '.join(map(str, choices))}")
        return value

    return decode_choice


def _bytes(value: object) -> bytes:
    try:
        if isinstance(value, str):
            return binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        pass
    raise StateError(f"{_shown(value)} is no base64")


def _items(value: object) -> list[object]:
    if not isinstance(value, list):
        raise StateError(f"{_shown(value)} is no list")
    return value


def _list(decode_item: Decoder) -> Decoder:
    return lambda value: tuple([decode_item(item) for item in _items(value)])


def _fixed_list(decoders: list[Decoder]) -> Decoder:
    def decode_items(value: object) -> object:
        items = _items(value)
        if len(items) != len(decoders):
            raise StateError(f"{len(items)} items, not {len(decoders)}")
        return tuple(decode_item(item) for decode_item, item in zip(decoders, items, strict=True))

    return decode_items


def _object_of(decode_item: Decoder) -> Decoder:
    def decode_object(value: object) -> object:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise StateError(f"{_shown(value)} is no object")
        return {key: decode_item(item) for key, item in value.items()}

    return decode_object


def _anything(value: object) -> object:
    """Of JSON, which knows no NaN and no infinity."""
    if isinstance(value, dict):
        for item in value.values():
            _anything(item)
    elif isinstance(value, list):
        for item in value:
            _anything(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise StateError(f"{value} is no finite number")
    return value


_SIMPLE: dict[type, Decoder] = {
    int: _whole_number(ANY_INT),
    float: _finite_number,
    bool: _of_class(bool),
    str: _of_class(str),
    bytes: _bytes,
    object: _anything,
}
