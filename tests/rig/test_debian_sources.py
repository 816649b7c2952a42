"""Finding Debian's archive in the ways an apt configuration can be written."""

from __future__ import annotations

import pytest

from virtserial.rig import RigUnavailable
from virtserial.rig.debian import (
    AptSource,
    Mirror,
    choose_mirror,
    machine_sources,
    parse_deb822_sources,
    parse_one_line_sources,
)

ONE_LINE = """
# deb http://commented.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/x.gpg arch=amd64] http://one.example/debian/ bookworm main contrib
deb-src http://one.example/debian bookworm main
deb http://one.example/debian-security bookworm-security main
"""
DEB822 = """
# the archive
Types: deb deb-src
URIs: http://two.example/debian
Suites: trixie
 trixie-updates
Components: main
# within a stanza
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: trixie

Types: deb
URIs: http://other.example/apt
Suites: ./
"""


def test_one_line_style():
    assert list(parse_one_line_sources(ONE_LINE)) == [
        AptSource("http://one.example/debian/", ("bookworm",)),
        AptSource("http://one.example/debian-security", ("bookworm-security",)),
    ]


def test_deb822_style():
    assert list(parse_deb822_sources(DEB822)) == [
        AptSource("http://two.example/debian", ("trixie", "trixie-updates")),
        AptSource("http://other.example/apt", ("./",)),
    ]


def test_folder_is_read_in_apts_order_and_only_apts_files(tmp_path):
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://first.example/debian sid main\n")
    (parts / "b.sources").write_text(DEB822)
    (parts / "a.list").write_text(ONE_LINE)
    (parts / "c.list.disabled").write_text("deb http://disabled.example/debian sid main\n")
    hosts = [source.uri.split("/")[2].split(".")[0] for source in machine_sources(tmp_path)]
    assert hosts == ["first", "one", "one", "two", "other"]


def test_archive_and_security_archive_are_told_apart():
    sources = [*parse_one_line_sources(ONE_LINE)]
    mirror = Mirror("http://one.example/debian", "http://one.example/debian-security")
    assert choose_mirror(sources, None) == mirror
    assert choose_mirror(reversed(sources), None) == mirror


def test_foreign_entries_are_no_debian_archive():
    sources = [AptSource("http://ubuntu.example/ubuntu", ("jammy",)), AptSource("http://node.example/", ("nodistro",))]
    with pytest.raises(RigUnavailable, match="VIRTSERIAL_DEBIAN_MIRROR"):
        choose_mirror(sources, None)


def test_environment_wins():
    assert choose_mirror([], "http://mine.example/debian/") == Mirror(
        "http://mine.example/debian", "http://mine.example/debian-security"
    )
