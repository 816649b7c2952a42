"""Names and records of the protocol, and that its table is the one that docs/fleet.md shows."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.places import ROOT

from virtserial.errors import ConfigError, PeerError
from virtserial.fleet import protocol
from virtserial.fleet.protocol import (
    HostRecord,
    Place,
    PortRecord,
    VmRecord,
    document,
    name_of,
    read_host,
    read_vm,
    token,
    write,
)


@pytest.mark.parametrize(
    ("name", "encoded"),
    [("alpha", "alpha"), ("org.example.0", "org=2Eexample=2E0"), ("a b", "a=20b"), ("=", "=3D"), ("ü", "=C3=BC"),
     (">", "=3E"), ("*", "=2A"), ("a/b", "a=2Fb")],
)  # fmt: skip
def test_names_become_tokens(name, encoded):
    assert token(name) == encoded
    assert name_of(encoded) == name


@given(st.text(min_size=1, max_size=100))
def test_every_name_comes_back(name):
    try:
        encoded = token(name)
    except (ConfigError, UnicodeEncodeError):
        return
    assert not set(encoded) & set(". *>\r\n\t")
    assert name_of(encoded) == name


@pytest.mark.parametrize("wrong", ["", "a.b", "=2e", "=61", "=", "=2", "a b", "*", ">", "x" * 1000, "=ZZ"])
def test_what_is_no_token_is_refused(wrong):
    with pytest.raises(PeerError):
        name_of(wrong)


def test_names_of_no_size_or_too_much_are_refused():
    for wrong in ("", "x" * 1000, "." * 400):
        with pytest.raises(ConfigError, match="1 to 900 bytes"):
            token(wrong)


def test_a_place_is_a_subject_and_a_key():
    place = Place("h1", "vm.a", "org.example.0")
    assert place.subject("out") == "vs.h1.vm=2Ea.org=2Eexample=2E0.out"
    assert place.key == "h1.vm=2Ea.org=2Eexample=2E0"
    assert str(place) == "h1/vm.a/org.example.0"


def test_records_come_back():
    host = HostRecord("a1", "machine", 1.5, "0.1", 3, {"busy": 1})
    vm = VmRecord("a1", "root", [PortRecord("p", "", ["c0"], True, None, 1, False, "")])
    assert read_host(write(host)) == host
    assert read_vm(write(vm)) == vm


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"ports": 1}', b'{"ports": [1]}', b"[" * 100_000])
def test_what_is_no_record_is_refused(data):
    for read in (read_host, read_vm):
        with pytest.raises(PeerError):
            read(data)


@pytest.mark.parametrize("member", [field.name for field in fields(PortRecord)])
def test_a_member_of_another_kind_is_refused(member):
    port = asdict(PortRecord("p", "", ["c0"], True, None, 1, False, ""))
    for wrong in ({}, [1], 1.5):
        with pytest.raises(PeerError):
            read_vm(write({"agent": "a", "user": "u", "ports": [port | {member: wrong}]}))
    host = asdict(HostRecord("a1", "machine", 1.5, "0.1", 3, {}))
    for wrong in ({"lost": "3"}, {"refused": {"busy": []}}, {"machine": None}):
        with pytest.raises(PeerError):
            read_host(write(host | wrong))


def test_a_document_is_an_object():
    assert document(b'{"a": 1}') == {"a": 1}
    with pytest.raises(PeerError):
        document(b"1")


def test_the_page_shows_the_table_of_the_source():
    page = (ROOT / "docs" / "fleet.md").read_text()
    rows = [line for line in protocol.__doc__.splitlines() if line.startswith("|")]
    assert len(rows) > 12
    assert [row for row in rows if row not in page] == []
