"""The types of commands' arguments, and QEMU's errors for what does not fit (qapi/qobject-input-visitor.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.monitor.qmp import QmpError
from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Enum(NamedTuple):
    """One of some words."""

    values: tuple[str, ...]


class List(NamedTuple):
    """An array whose elements are of one type."""

    type: type


class Union(NamedTuple):
    """An object whose "type" tells the type of its "data"; None: any."""

    branches: Mapping[str, Struct | None]


class Optional(NamedTuple):
    """An optional member."""

    type: Type


Type = type | Enum | List | Union | dict[str, "Type | Optional"]
"""str, int, bool, an enumeration, a union, or the members of an object."""
Struct = dict[str, Type | Optional]

_WORDS: dict[type, str] = {str: "string", int: "integer", bool: "boolean"}


def check(value: Mapping[str, object], struct: Struct, path: str = "") -> None:
    """Check an object's members, in the order of the schema.

    Raises:
        QmpError: one is missing, of the wrong type, or unexpected.
    """
    for name, kind in struct.items():
        member = f"{path}{name}"
        if name not in value:
            if not isinstance(kind, Optional):
                raise QmpError(f"Parameter '{member}' is missing")
            continue
        _check_value(value[name], kind.type if isinstance(kind, Optional) else kind, member, name)
    _refuse_unexpected(value, struct, path)


def _check_value(value: object, kind: Type, member: str, name: str) -> None:
    if isinstance(kind, Enum):
        _check_word(value, kind.values, member, name)
    elif isinstance(kind, List):
        if not isinstance(value, list):
            raise QmpError(f"Invalid parameter type for '{member}', expected: array")
        for index, element in enumerate(value):
            _check_value(element, kind.type, f"{member}[{index}]", name)
    elif isinstance(kind, Union):
        _check_union(_object(value, member), kind, member)
    elif isinstance(kind, dict):
        check(_object(value, member), kind, f"{member}.")
    elif type(value) is not kind or (isinstance(value, int) and not -(1 << 63) <= value < 1 << 63):
        raise QmpError(f"Invalid parameter type for '{member}', expected: {_WORDS[kind]}")


def _check_union(value: Mapping[str, object], union: Union, member: str) -> None:
    if "type" not in value:
        raise QmpError(f"Parameter '{member}.type' is missing")
    _check_word(value["type"], tuple(union.branches), f"{member}.type", "type")
    if "data" not in value:
        raise QmpError(f"Parameter '{member}.data' is missing")
    branch, data = union.branches[str(value["type"])], _object(value["data"], f"{member}.data")
    if branch is not None:
        check(data, branch, f"{member}.data.")
    _refuse_unexpected(value, ("type", "data"), f"{member}.")


def _check_word(value: object, words: Sequence[str], member: str, name: str) -> None:
    if not isinstance(value, str):
        raise QmpError(f"Invalid parameter type for '{member}', expected: string")
    if value not in words:
        raise QmpError(f"Parameter '{name}' does not accept value '{value}'")


def _object(value: object, member: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise QmpError(f"Invalid parameter type for '{member}', expected: object")
    return value


def _refuse_unexpected(value: Mapping[str, object], known: Struct | Sequence[str], path: str) -> None:
    for name in value:
        if name not in known:
            raise QmpError(f"Parameter '{path}{name}' is unexpected")
