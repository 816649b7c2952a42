"""Connections of chardevs as they travel to the worker, whatever their kind."""

import json

import pytest

from virtserial.channel.codec import decode, encode
from virtserial.channel.connections import (
    CONNECTION,
    HandlerCode,
    HandlerConnection,
    LayeredConnection,
    LoggedConnection,
    NullConnection,
    StreamConnection,
    Telnet,
    Tls,
    TlsFiles,
    WebSocket,
    is_peer_there,
    unlogged,
)
from virtserial.errors import StateError

FILES = TlsFiles(server=True, verify=False, context="tls0 1f", roles=("ca-cert", "cert", "key"))


def travelled(connection):
    return decode(CONNECTION, json.loads(json.dumps(encode(connection))))


@pytest.mark.parametrize("kind", [each for each in CONNECTION.classes.values() if each.__slots__ == ("name",)])
def test_kind_without_more_words(kind):
    assert travelled(kind("c")) == kind("c")


@pytest.mark.parametrize(
    "connection",
    [
        StreamConnection("c", None, 0),
        LayeredConnection("c", (Tls(FILES, "host"), WebSocket(), Telnet(server=True))),
        HandlerConnection("c", HandlerCode("", "/h.py"), "Echo"),
        LoggedConnection(StreamConnection("c", 0, 1)),
    ],
)
def test_kind_with_more_words(connection):
    assert travelled(connection) == connection
    assert travelled(connection).name == "c"


def test_a_log_is_of_one_connection_not_of_another_log():
    with pytest.raises(StateError):
        travelled(LoggedConnection(LoggedConnection(NullConnection("c"))))


def test_only_null_has_no_peer():
    assert not is_peer_there(NullConnection("c"))
    assert not is_peer_there(LoggedConnection(NullConnection("c")))
    assert is_peer_there(LoggedConnection(StreamConnection("c", 0, 1)))
    assert unlogged(LoggedConnection(NullConnection("c"))) == NullConnection("c")
