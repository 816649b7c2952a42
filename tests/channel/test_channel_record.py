"""channel/record.py: fields are given by position, by name or by default, each once."""

from __future__ import annotations

import pytest

from virtserial.channel.record import record, replace


@record
class Place:
    x: int
    y: int = 2


@record
class Named(Place):
    name: str = ""


def test_fields_come_by_position_name_and_default():
    assert Place(1) == Place(x=1) == Place(1, y=2) == Place(y=2, x=1)
    assert repr(Named(1, name="a")) == "Named(x=1, y=2, name='a')"
    assert replace(Place(1), y=3) == Place(1, 3)
    assert Place(1) != Named(1)
    with pytest.raises(AttributeError, match="frozen"):
        Place(1).x = 2


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1}), ((), {"y": 1, "z": 1})]
)
def test_missing_unknown_and_repeated_fields_are_refused(values, named):
    with pytest.raises(TypeError, match="Place has the fields x, y"):
        Place(*values, **named)
