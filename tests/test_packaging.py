"""What is shipped beside the code: systemd takes the units, groff the man pages, and these know every command."""

import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile

import pytest
from support.built import build_wheels
from support.places import ROOT

import virtserial.guest
from virtserial.cli.commands import COMMANDS
from virtserial.guest.sshd import PORT

PAGES = ("virtserial.1", "virtserial-qemu.1", "virtserial-vhost-user.1", "virtserial-guest.1", "virtserial.7")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_accepts_the_units(tmp_path):
    units = []
    for kind in ("service", "socket"):
        text = (ROOT / f"packaging/systemd/virtserial@.{kind}").read_text()
        # The program that is named must be there.
        units.append(tmp_path / f"virtserial@vm1.{kind}")
        units[-1].write_text(text.replace("/usr/bin/virtserial ", f"{shutil.which('true')} "))
    for name in ("exporter", "fleet", "web"):
        text = (ROOT / f"packaging/systemd/virtserial-{name}.service").read_text()
        units.append(tmp_path / f"virtserial-{name}.service")
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


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Names of the files in the wheel and in the source archive of virtserial."""
    wheel, source = build_wheels(ROOT, tmp_path_factory.mktemp("dist"))
    with zipfile.ZipFile(wheel) as files, tarfile.open(source) as archive:
        top = source.name.removesuffix(".tar.gz")
        return set(files.namelist()), {name.removeprefix(f"{top}/") for name in archive.getnames()}


def modules(folder):
    return {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob("*.py")}


def test_the_wheel_has_every_module_and_what_is_shipped_beside_them(archives):
    wheel, _ = archives
    assert modules("src") <= wheel
    assert {f"virtserial/guest/{name}" for name in modules("guest/virtserial_guest")} <= wheel
    shared = {name.partition("/data/share/")[2] for name in wheel}
    for page in PAGES:
        assert f"man/man{page[-1]}/{page}" in shared or page == "virtserial-guest.1"
    for folder in ("systemd", "tmpfiles.d", "udev", "guest", "apparmor", "prometheus", "grafana"):
        for path in (ROOT / "packaging" / folder).iterdir():
            assert f"virtserial/{folder}/{path.name}" in shared


def test_the_source_archive_builds_and_tests_itself(archives):
    _, source = archives
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git here")
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    assert {name for name in tracked - source if not name.startswith(".") and name != "src/virtserial/guest"} == set()


def test_the_guest_s_wheel_has_every_module(tmp_path):
    wheel, source = build_wheels(ROOT / "guest", tmp_path)
    with zipfile.ZipFile(wheel) as files:
        assert modules("guest") <= set(files.namelist())
        assert any(name.endswith("py.typed") for name in files.namelist())
    assert source.name.startswith("virtserial_guest-")


def test_all_say_the_same_version():
    version = virtserial.__version__
    projects = [tomllib.loads((ROOT / name).read_text()) for name in ("pyproject.toml", "guest/pyproject.toml")]
    assert {project["project"]["version"] for project in projects} == {version}
    assert virtserial.guest.__version__ == version
    assert (ROOT / "packaging/debian/changelog").read_text().startswith(f"virtserial ({version}) ")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    for page in PAGES:
        assert f'"virtserial {version.rpartition(".")[0]}"' in (ROOT / "man" / page).read_text()


def test_distributions_name_only_files_that_are_there():
    for listing in (ROOT / "packaging/debian").glob("*.install"):
        for line in listing.read_text().splitlines():
            assert list(ROOT.glob(line.split()[0])), line
    for listing in (ROOT / "packaging/debian").glob("*.manpages"):
        assert all((ROOT / line).exists() for line in listing.read_text().splitlines())
    texts = "".join((ROOT / "packaging" / name).read_text() for name in ("debian/rules", "virtserial.spec"))
    for path in re.findall(r"packaging/[\w@./*-]+", texts):
        assert list(ROOT.glob(path)), path


def test_distributions_start_the_programs_of_the_project():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    rules, spec = ((ROOT / "packaging" / name).read_text() for name in ("debian/rules", "virtserial.spec"))
    for name, start in scripts.items():
        module = start.removesuffix(":main")
        assert f"program,{name},$(HOST),{module})" in rules
        assert f"program {name} {module}\n" in spec


def test_a_guest_s_units_serve_the_port_that_ssh_looks_for():
    for name in ("virtserial-sshd.service", "virtserial-sshd.openrc"):
        assert f"-m virtserial_guest sshd {PORT}" in (ROOT / "packaging/guest" / name).read_text()
