"""What is said of a download."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from virtserial.rig.progress import announce, follow, size_of

URIS = """Reading package lists...
'http://a.example/pool/q/qemu.deb' qemu_1.deb 37000000 SHA256:00
'http://a.example/pool/l/libc.deb' libc_2.deb 3000000 SHA256:11
"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_it_says_what_how_much_from_where_and_where_to(capsys):
    announce("qemu", size_of(URIS), "http://a.example", Path("/cache"))
    assert capsys.readouterr().err == (
        "fetching qemu and what it needs, 38.1 MiB\n  from http://a.example\n  into /cache\n"
    )


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    follow(["dlstatus:1:50.0:Retrieving file 1 of 2 (4s remaining)\n", "pmstatus:x\n"])
    drawn = "[###############---------------]  50%  Retrieving file 1 of 2 (4s remaining)"
    assert terminal.getvalue() == f"\r\x1b[K{drawn}\r\x1b[K"


def test_a_log_gets_none(capsys):
    follow(["dlstatus:1:50.0:Retrieving\n"])
    assert capsys.readouterr().err == ""
