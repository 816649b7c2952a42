"""Whatever is written on a command line, the answer is a meaning or one ConfigError."""

import contextlib
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from virtserial.errors import ConfigError
from virtserial.options.chardev_options import PARAMETERS, parse_chardev
from virtserial.options.device_options import DRIVERS, parse_device

NAMES = [*PARAMETERS, "id", *(name for known in DRIVERS.values() for name in known)]
HEADS = ["socket", "file", "ringbuf", "pty", "handler", "mux", *DRIVERS]
NUMBERS = st.integers().map(str) | st.from_regex(r"-?[0-9]{1,5000}[kMGTPE]?", fullmatch=True)
VALUES = st.text(max_size=20) | NUMBERS
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10), st.lists, max_leaves=4
)
WORDS = st.builds(lambda name, value: f"{name}={value}", st.sampled_from(NAMES), VALUES) | st.text(max_size=20)


def parse(text):
    for meaning_of in (parse_chardev, parse_device):
        with contextlib.suppress(ConfigError):
            meaning_of(text)


@settings(deadline=None)
@given(st.text())
def test_any_text(text):
    parse(text)


@settings(deadline=None)
@given(st.sampled_from(HEADS), st.lists(WORDS, max_size=6))
def test_any_values(head, words):
    parse(",".join([head, "id=a", *words]))


@settings(deadline=None)
@given(st.sampled_from(HEADS), st.dictionaries(st.sampled_from(NAMES), JSON_VALUES, max_size=5))
def test_any_json(head, values):
    parse(json.dumps({"driver": head, "backend": head, "id": "a", **values}))
