"""What is shipped beside the code: systemd takes the units, groff the man pages, and these know every command."""

import re
import shutil
import subprocess

import pytest
from support.places import ROOT

from virtserial.cli.commands import COMMANDS
from virtserial.guest.sshd import PORT

PAGES = ("virtserial.1", "virtserial-qemu.1", "virtserial.7")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_accepts_the_units(tmp_path):
    units = []
    for kind in ("service", "socket"):
        text = (ROOT / f"packaging/systemd/virtserial@.{kind}").read_text()
        # The program that is named must be there.
        units.append(tmp_path / f"virtserial@vm1.{kind}")
        units[-1].write_text(text.replace("/usr/bin/virtserial ", f"{shutil.which('true')} "))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    assert done.returncode == 0
    assert not [line for line in done.stderr.splitlines() if str(tmp_path) in line]


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff here")
@pytest.mark.parametrize("page", PAGES)
def test_groff_has_nothing_to_say_about_a_man_page(page):
    done = subprocess.run(["groff", "-man", "-ww", "-z", ROOT / "man" / page], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_man_page_knows_every_command():
    page = (ROOT / "man/virtserial.1").read_text()
    commands = page.partition(".SH COMMANDS")[2].partition(".SH OPTIONS")[0]
    assert set(COMMANDS) <= set(re.findall(r"[a-z-]+", commands))


def test_the_wheel_has_what_is_shipped():
    project = (ROOT / "pyproject.toml").read_text()
    folders = ("systemd", "tmpfiles.d", "udev", "guest")
    for path in [*(f"man/{page}" for page in PAGES), *(f"packaging/{name}" for name in folders)]:
        assert f'"{path}" = "share/' in project
        assert (ROOT / path).exists()


def test_a_guest_s_units_serve_the_port_that_ssh_looks_for():
    for name in ("virtserial-sshd.service", "virtserial-sshd.openrc"):
        assert f"-m virtserial_guest sshd {PORT}" in (ROOT / "packaging/guest" / name).read_text()
