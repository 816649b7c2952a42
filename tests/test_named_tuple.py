"""named_tuple.py: what typing.NamedTuple makes, it makes too."""

from __future__ import annotations

import copy
import pickle
import typing

import pytest

from virtserial.named_tuple import NamedTuple


class Ours(NamedTuple):
    """A place."""

    x: int
    y: list[int] | None = None
    z: str = "z"

    @property
    def sum(self) -> int:
        return self.x + sum(self.y or ())

    @classmethod
    def origin(cls) -> Ours:
        return cls(0)


class Standard(typing.NamedTuple):
    """A place."""

    x: int
    y: list[int] | None = None
    z: str = "z"


def test_it_is_the_standards():
    assert Ours(1, [2]) == Standard(1, [2]) == (1, [2], "z")
    assert repr(Ours(1)) == repr(Standard(1)).replace("Standard", "Ours")
    for name in ("__doc__", "_fields", "_field_defaults", "__match_args__", "__module__", "__bases__", "__slots__"):
        assert getattr(Ours, name) == getattr(Standard, name)
    assert Ours.__annotations__ == {"x": "int", "y": "list[int] | None", "z": "str"}
    assert typing.get_type_hints(Ours) == typing.get_type_hints(Standard)


def test_it_has_the_members_of_its_class():
    assert Ours(1, [2, 3]).sum == 6
    assert Ours.origin() == (0, None, "z")
    assert Ours.__qualname__ == "Ours"


def test_it_is_copied_replaced_and_matched():
    first = Ours(1, [2])
    assert first._replace(z="y") == (1, [2], "y")
    assert type(pickle.loads(pickle.dumps(first))) is Ours
    assert copy.deepcopy(first) == first
    match first:
        case Ours(x, y):
            assert (x, y) == (1, [2])


def test_wrong_fields_are_refused():
    with pytest.raises(TypeError, match="x"):
        Ours()
    with pytest.raises(TypeError):
        Ours(1, w=2)
    with pytest.raises(AttributeError):
        Ours(1).x = 2
    with pytest.raises(TypeError, match="default"):

        class _Wrong(NamedTuple):
            x: int = 1
            y: int
