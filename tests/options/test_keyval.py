"""QEMU's option strings."""

import pytest

from virtserial.errors import ConfigError
from virtserial.options import keyval


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (
            "socket,path=/tmp/foo,server,nowait,id=foo",
            {"x": "socket", "path": "/tmp/foo", "server": "on", "wait": "off", "id": "foo"},
        ),
        ("socket,path=/a,,b,id=c", {"x": "socket", "path": "/a,b", "id": "c"}),
        ("a,,b", {"x": "a,b"}),
        ("name=a=b", {"name": "a=b"}),
        ("id=a,path=x", {"id": "a", "path": "x"}),
        ("d,name=,nr=1", {"x": "d", "name": "", "nr": "1"}),
        ("d,nr=1,nr=2", {"x": "d", "nr": "2"}),
        ("d,,,e=1", {"x": "d,", "e": "1"}),
        ("d,", {"x": "d"}),
        ("d,,", {"x": "d,"}),
        ("", {"x": ""}),
        ("d,path=,,,id=a", {"x": "d", "path": ",", "id": "a"}),
        ("nowait", {"x": "nowait"}),
        ('{"driver": "d", "nr": 4, "on": true}', {"driver": "d", "nr": 4, "on": True}),
    ],
)
def test_meaning(text, meaning):
    assert keyval.parse_options(text, "x") == meaning


@pytest.mark.parametrize("text", ['{"driver":"d"', "{", '{"a":1}x', "{" + '"a":{' * 100_000])
def test_broken_json(text):
    with pytest.raises(ConfigError, match=r"^JSON parse error, "):
        keyval.parse_options(text, "x")


@pytest.mark.parametrize("value", ["on", "yes", "true", "y", True])
def test_on(value):
    assert keyval.to_bool("b", value) is True


@pytest.mark.parametrize("value", ["off", "no", "false", "n", False])
def test_off(value):
    assert keyval.to_bool("b", value) is False


@pytest.mark.parametrize("value", ["", "On", "1", 1, None, "maybe"])
def test_no_bool(value):
    with pytest.raises(ConfigError) as caught:
        keyval.to_bool("server", value)
    assert str(caught.value) == "Parameter 'server' expects 'on' or 'off'"


@pytest.mark.parametrize(("value", "number"), [("0", 0), ("12", 12), ("0x1F", 31), ("010", 8), (" 4", 4), (7, 7)])
def test_number(value, number):
    assert keyval.to_number("n", value) == keyval.to_uint32("n", value) == number


@pytest.mark.parametrize("value", ["", "x", "1x", "4k", "-1", "1.5", 1.5, True, None, "08", "0x", 1 << 64])
def test_no_number(value):
    with pytest.raises(ConfigError) as caught:
        keyval.to_number("reconnect-ms", value)
    assert str(caught.value) == "Parameter 'reconnect-ms' expects a number"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[(value, "integer") for value in ("", "x", "4k", "1.5")],
        *[(value, "uint32_t") for value in ("-1", "4294967296", 1 << 32, -5)],
        *[(value, "uint64") for value in (1.5, True, None, [])],
    ],
)
def test_no_uint32(value, expected):
    with pytest.raises(ConfigError) as caught:
        keyval.to_uint32("max_ports", value)
    assert str(caught.value) == f"Parameter 'max_ports' expects {expected}"


@pytest.mark.parametrize(
    ("value", "size"),
    [("65536", 65536), ("4K", 4096), ("4k", 4096), ("1M", 1 << 20), ("1.5k", 1536), ("0x10", 16), (64, 64), ("8b", 8)],
)
def test_size(value, size):
    assert keyval.to_size("size", value) == size


@pytest.mark.parametrize("value", ["", "x", "3x", "k", True, None])
def test_no_size(value):
    with pytest.raises(ConfigError) as caught:
        keyval.to_size("size", value)
    assert str(caught.value) == (
        "Parameter 'size' expects a non-negative number below 2^64\n"
        "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
        "and exabytes, respectively."
    )


@pytest.mark.parametrize("value", ["-1", "16E", -1])
def test_size_out_of_range(value):
    with pytest.raises(ConfigError) as caught:
        keyval.to_size("size", value)
    assert str(caught.value) == f"Value '{value}' is out of range for parameter 'size'"


@pytest.mark.parametrize("value", ["a", "org.fedoraproject-1_x", "Z9"])
def test_identifier(value):
    assert keyval.check_identifier(value) == value


@pytest.mark.parametrize("value", ["", "1a", "a b", "a/b", "ä", "a\n", 5, None])
def test_no_identifier(value):
    with pytest.raises(ConfigError) as caught:
        keyval.check_identifier(value)
    assert str(caught.value) == (
        "Parameter 'id' expects an identifier\n"
        "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
    )


@pytest.mark.parametrize("value", [5, None, True, {}])
def test_no_string(value):
    with pytest.raises(ConfigError, match=r"^Invalid parameter type for 'name', expected: string$"):
        keyval.to_string("name", value)


def test_string_with_nul():
    with pytest.raises(ConfigError, match="NUL"):
        keyval.to_string("path", "a\0b")
