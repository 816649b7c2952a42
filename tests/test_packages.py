"""Distributions' packages: built, checked, installed, run and removed in Debian roots of their own.

It takes minutes: only with VIRTSERIAL_PACKAGES=1.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from support.built import copy_tree
from support.empty_machine import empty_machine
from support.fetched import fetch_or_skip
from support.installed_debian import installed_debian

import virtserial

pytestmark = [
    pytest.mark.skipif("VIRTSERIAL_PACKAGES" not in os.environ, reason="takes minutes: VIRTSERIAL_PACKAGES=1"),
    pytest.mark.process,
    pytest.mark.timeout(900),
]
WORKSHOP = ("dpkg-dev", "debhelper", "dh-python", "lintian", "apparmor", "rpm", "python3", "fakeroot")
VERSION = virtserial.__version__
INSTALLED = {
    *(f"/usr/bin/virtserial{name}" for name in ("", "-qemu", "-vhost-user", "-guest")),
    *(f"/usr/lib/systemd/system/virtserial{name}.service" for name in ("@", "-exporter", "-sshd")),
    "/usr/lib/systemd/system/virtserial@.socket",
    "/usr/lib/udev/rules.d/60-virtio-ports.rules",
    "/usr/lib/tmpfiles.d/virtserial.conf",
    "/etc/apparmor.d/abstractions/virtserial",
    *(f"/usr/share/bash-completion/completions/virtserial{name}" for name in ("", "-qemu", "-vhost-user", "-guest")),
    *(f"/usr/share/fish/vendor_completions.d/virtserial{name}.fish" for name in ("", "-guest")),
    "/usr/share/qemu/vhost-user/50-virtserial.json",
    "/usr/share/virtserial/prometheus/virtserial.rules.yml",
    "/usr/share/virtserial/grafana/virtserial.json",
}
"""Files of both packages; documentation and man pages are not in it: a minimal Debian may leave them out."""


def run(machine, *words, network=True):
    """What a command prints; it must succeed."""
    command = machine.command(*words, network=network)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A Debian with what packages are built with, and a copy of this tree in it."""
    tree = tmp_path_factory.mktemp("tree") / "virtserial"
    copy_tree(tree)
    with empty_machine(shared=[tree], root=fetch_or_skip(installed_debian, *WORKSHOP)) as machine:
        yield machine, tree


@pytest.fixture(scope="module")
def debs(workshop, tmp_path_factory):
    machine, tree = workshop
    run(machine, "sh", "-c", f"cd {tree} && ./scripts/build deb", network=False)
    folder = tmp_path_factory.mktemp("debs")
    for path in (tree / "dist").glob("*.deb"):
        shutil.copy(path, folder)
    return folder


def files_of(machine):
    """Every file outside the package manager's own records."""
    listed = run(machine, "find", "/bin", "/etc", "/lib", "/opt", "/sbin", "/usr", "-not", "-type", "d")
    return set(listed.splitlines())


def test_lintian_has_no_errors(workshop, debs):
    machine, tree = workshop
    changes = next((tree / "build/deb").glob("*.changes"))
    print(run(machine, "lintian", "--allow-root", "--fail-on", "error", str(changes)))


def test_the_packages_are_installed_run_and_removed(debs):
    names = sorted(path.name for path in debs.iterdir())
    assert names == [f"virtserial-guest_{VERSION}_all.deb", f"virtserial_{VERSION}_all.deb"]
    with empty_machine(shared=[debs], root=fetch_or_skip(installed_debian, "python3")) as machine:
        before = files_of(machine)
        assert not any(path.endswith(("/gcc", "/cc", "/pip")) for path in before)
        run(machine, "sh", "-c", f"dpkg -i {debs}/*.deb", network=False)
        assert files_of(machine) >= INSTALLED
        assert run(machine, "virtserial", "--version") == f"virtserial {VERSION}\n"
        assert "all sha1sums are equal" in run(machine, "virtserial", "demo", "--size", "1", network=False)
        assert "vfio-user-pci" in run(machine, "virtserial-qemu", "--explain", "-device", "virtio-serial")
        assert "ports" in run(machine, "virtserial-guest", "--help")
        run(machine, "dpkg", "--purge", "virtserial", "virtserial-guest", network=False)
        assert files_of(machine) - before == set()


def test_apparmor_can_read_the_abstraction(workshop):
    machine, tree = workshop
    profile = tree / "profile"
    abstraction = tree / "packaging/apparmor/virtserial"
    profile.write_text(f'include <tunables/global>\nprofile test {{\n  include "{abstraction}"\n}}\n')
    run(machine, "apparmor_parser", "--skip-kernel-load", "--skip-cache", str(profile))


def test_rpms_are_built_installed_run_and_removed(workshop):
    machine, tree = workshop
    run(machine, "sh", "-c", f"cd {tree} && ./scripts/build rpm", network=False)
    for name, path in (("virtserial", "/usr/bin/virtserial-qemu"), ("virtserial-guest", "/usr/bin/virtserial-guest")):
        listed = run(machine, "sh", "-c", f"rpm -qlp {tree}/dist/{name}-{VERSION}-1.noarch.rpm")
        assert {path, f"/usr/share/licenses/{name}/LICENSE"} <= set(listed.splitlines())
    rpm = "rpm --root /rpms"
    run(machine, "sh", "-c", f"mkdir /rpms && {rpm} --nodeps -i {tree}/dist/*.rpm", network=False)
    there = "PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$(echo /rpms/usr/lib/python3*/site-packages) /rpms/usr/bin"
    assert "all sha1sums are equal" in run(machine, "sh", "-c", f"{there}/virtserial demo --size 1", network=False)
    assert "ports" in run(machine, "sh", "-c", f"{there}/virtserial-guest --help")
    run(machine, "sh", "-c", f"{rpm} -e virtserial virtserial-guest", network=False)
    assert run(machine, "find", "/rpms/usr", "-iname", "*virtserial*") == ""
