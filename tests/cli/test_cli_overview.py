"""Tables of `ls` and `ports` on terminals of any width."""

from __future__ import annotations

from virtserial.cli.overview import fitting, text_of

ROWS = [
    ("VM", "CONTROLLERS", "PORTS ", "DISCARDED ", "DROPPED ", "HOST END"),
    ("alpha", "ser0", "3", "0", "0", "unix:/run/alpha"),
    ("beta", "ser1", "12", "7", "0", "-"),
]


def test_a_table_that_is_no_terminal_s_keeps_every_column():
    assert fitting(ROWS, 0) == fitting(ROWS, 200) == ROWS


def test_columns_that_say_nothing_are_left_out_where_the_terminal_is_narrow():
    narrow = fitting(ROWS, 56)
    assert narrow[0] == ("VM", "CONTROLLERS", "PORTS ", "DISCARDED ", "HOST END")
    assert max(map(len, text_of(narrow).splitlines())) <= 56


def test_what_says_something_stays_though_it_does_not_fit():
    assert fitting(ROWS, 10)[0] == ("VM", "CONTROLLERS", "PORTS ", "DISCARDED ", "HOST END")
