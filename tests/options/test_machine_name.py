"""QEMU's -name, as far as a machine's name is in it."""

import pytest

from virtserial.options.machine_name import machine_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("alpha", "alpha"),
        ("guest=alpha,debug-threads=on", "alpha"),
        ("alpha,process=x", "alpha"),
        ("a,,b", "a,b"),
        ("debug-threads=on", ""),
        ("", ""),
        ("a,b=c,", "a"),
    ],
)
def test_the_name_in_the_argument(text, name):
    assert machine_name(text) == name
