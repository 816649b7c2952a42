"""`virtserial conformance` on our device by each front and ring, on QEMU's own, and on what is no device."""

from __future__ import annotations

import re
import time
from xml.etree import ElementTree as ET

import pytest
from support.fetched import fetch_or_skip
from support.places import REGISTRY, ROOT

import virtserial
from virtserial.cli.main import main
from virtserial.conformance.cases import CASES
from virtserial.conformance.contract import CONTRACT
from virtserial.conformance.driver import PATIENCE
from virtserial.conformance.driver_contract import PORT_HELPERS
from virtserial.conformance.hostile import DEMANDED, hostile_checks
from virtserial.conformance.packed_cases import PACKED
from virtserial.rig.qemu import find_qemu

CONTRACT_NAMES = [check.name for check in CONTRACT]
SOME = ["c01", "c05", "c29", "c45", "c46", "c49"]
"""The rest of the cases is played by tests/hostile."""


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Processes of tests are not listed among the machine's own."""
    monkeypatch.setenv("VIRTSERIAL_REGISTRY", REGISTRY)


@pytest.fixture(scope="module", params=["vfio-user", "packed", "legacy", "vhost-user"])
def words(request):
    """Our device as a target: the program's words."""
    vhost_user = request.param == "vhost-user"
    properties = {"vfio-user": {}, "packed": {"packed": True}, "legacy": {"disable-legacy": "off"}, "vhost-user": {}}
    chosen = {"max_ports": 4, **properties[request.param]}
    with virtserial.serve(["org.test.1"], consoles=["con"], vhost_user=vhost_user, **chosen) as machine:
        kind = "vhost-user" if vhost_user else "vfio-user"
        hosts = [machine.monitor.find_port(name).host_end for name in ("con", "org.test.1")]
        ways = [f"--{request.param}"] if request.param in ("packed", "legacy") else []
        options = [f"--host={number}={address}" for number, address in enumerate(hosts)]
        yield [f"{kind}:{machine.socket}", *ways, *options]


def run(capsys, *words):
    """The exit status, and what was printed."""
    try:
        status = main(["conformance", *words])
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr()


def test_our_device_keeps_the_contract(capsys, words, tmp_path):
    chosen = CONTRACT_NAMES if "--legacy" in words else [*CONTRACT_NAMES, *SOME]
    status, told = run(capsys, *words, *chosen, "--junit", str(tmp_path / "junit.xml"))
    lines = told.out.splitlines()
    names = [line.split()[1] for line in lines if line.startswith("ok ")]
    skipped = 2 if "--legacy" in words or words[0].startswith("vhost-user") else 0
    assert status == 0, told.out
    assert len(names) == len(chosen) - skipped, told.out
    suite = ET.parse(tmp_path / "junit.xml").getroot()
    assert suite.attrib["tests"] == str(len(chosen))
    assert (suite.attrib["failures"], suite.attrib["skipped"]) == ("0", str(skipped))
    assert all(case.attrib["classname"].startswith("virtio 1.3, ") for case in suite)


def test_without_hosts_what_cannot_be_seen_is_skipped(capsys, words):
    if "--legacy" in words:
        pytest.skip("there are no hostile cases by this interface")
    target = [word for word in words if not word.startswith("--host")]
    status, told = run(capsys, *target, "k09", "c01", "c48", "--tap")
    assert status == 0
    assert re.findall(r"^(ok|not ok) \d+ - (\w+) [^#\n]*(# SKIP)?", told.out, re.MULTILINE) == [
        ("ok", "k09", "# SKIP"), ("ok", "c01", ""), ("ok", "c48", "# SKIP"),
    ]  # fmt: skip
    assert told.out.startswith("TAP version 13\n1..3\n")


def test_a_device_with_one_port_of_many_passes_and_one_without_packed_rings_is_told(capsys):
    """As docs/vmms.md serves it: all queues, no console."""
    with virtserial.serve(["org.test.1"], vhost_user=True) as machine:
        status, told = run(capsys, f"vhost-user:{machine.socket}", "k04", "k06", "c29")
        assert (status, told.out.splitlines()[-1]) == (0, "2 ok, 1 skipped")
        status, told = run(capsys, f"vhost-user:{machine.socket}", "--packed")
    assert (status, told.out) == (1, "")
    assert "offers no packed rings" in told.err


@pytest.mark.parametrize("kind", ["vfio-user", "vhost-user"])
def test_a_socket_that_another_vmm_uses_and_one_of_another_protocol_are_told(capsys, kind):
    with virtserial.serve(["org.test.1"], vhost_user=kind == "vhost-user") as machine:
        target = f"{kind}:{machine.socket}"
        machine.attach()
        used = run(capsys, target)
        other = run(capsys, f"{'vfio-user' if kind == 'vhost-user' else 'vhost-user'}:{machine.socket}")
    for status, told in (used, other):
        assert (status, told.out) == (1, "")
        assert "does another VMM use it, or does it speak another protocol?" in told.err


def test_a_host_end_that_is_not_there_is_told_before_the_run(capsys, folder):
    with virtserial.serve(["org.test.1"]) as machine:
        begun = time.monotonic()
        status, told = run(capsys, f"vfio-user:{machine.socket}", f"--host=1=unix:{folder}/none")
    assert time.monotonic() - begun < PATIENCE
    assert (status, told.out) == (1, "")
    assert told.err == f"virtserial: nobody listens at unix:{folder}/none: No such file or directory\n"


@pytest.mark.qemu
def test_qemus_lost_control_messages_are_found(capsys, tmp_path):
    fetch_or_skip(find_qemu)
    status, told = run(capsys, "qemu:", "k03", "k06", "k07", "k08", "c07", "c24", f"--junit={tmp_path}/q.xml")
    verdicts = {name: verdict for verdict, name in re.findall(r"^(\w+) +([kc]\d+) ", told.out, re.MULTILINE)}
    assert verdicts == {"k03": "ok", "k06": "ok", "k07": "FAILED", "k08": "FAILED", "c07": "differs", "c24": "FAILED"}
    assert status == 1
    assert re.search(r"\d+ of 30 PORT_ADD came", told.out)
    assert "all 30 ports at once" in told.out
    failures = ET.parse(tmp_path / "q.xml").getroot().iter("failure")
    assert "of 30 PORT_ADD came" in next(failures).attrib["message"]


@pytest.mark.qemu
def test_a_command_line_of_qemus_is_a_target_and_strict_counts_what_differs(capsys, folder):
    fetch_or_skip(find_qemu)
    command = f"qemu:-device virtio-serial-pci,max_ports=4 -chardev socket,id=c,path={folder}/c,server=on,wait=off"
    target = (f"{command} -device virtserialport,nr=1,chardev=c", f"--host=1=unix:{folder}/c", "c07", "k09", "k11")
    status, told = run(capsys, *target)
    assert status == 0, told.out
    assert "2 ok, 1 differs" in told.out
    assert run(capsys, *target, "--strict", "--tap")[0] == 1


@pytest.mark.qemu
def test_a_qemu_without_a_console_is_told(capsys):
    fetch_or_skip(find_qemu)
    status, told = run(capsys, "qemu:-device virtio-rng-pci")
    assert (status, told.out) == (1, "")
    assert "no virtio console" in told.err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["nothing"], 2, "not a target"),
        (["vfio-user:"], 2, "not a target"),
        (["vfio-user:/nowhere"], 1, "/nowhere: No such file or directory"),
        (["vhost-user:/nowhere"], 1, "/nowhere: No such file or directory"),
        (["vfio-user:/nowhere", "k99"], 2, "k99: no such check"),
        (["vfio-user:/nowhere", "--host", "one"], 2, "--host one"),
        (["qemu:/no/qemu"], 2, "/no/qemu: no program"),
        (["vfio-user:/nowhere", "--host", "a=unix:/b"], 2, "'a' is not a port's number"),
        (["guest:ssh vm"], 2, "takes a command and one port"),
        (["guest:/no/ssh", "--host", "a=unix:/b"], 1, "/no/ssh: No such file or directory"),
        (["guest:false", "--host", "a=unix:/b"], 1, "the command to the guest has ended"),
        (["guest:sh -c", "g99", "--host", "a=unix:/b"], 2, "g99: no such check"),
    ],
)
def test_what_is_no_target_is_told_in_a_line(capsys, words, status, text):
    got, told = run(capsys, *words)
    assert (got, told.out) == (status, "")
    assert text in told.err
    assert "Traceback" not in told.err


def test_every_check_has_a_name_of_its_own_and_cites_a_section():
    for checks in ([*CONTRACT, *hostile_checks(packed=False)], [*CONTRACT, *hostile_checks(packed=True)]):
        assert len({check.name for check in checks}) == len(checks)
        for check in checks:
            assert re.match(r"\d+\.\d+", check.section), check
    assert len(hostile_checks(packed=False)) == len(CASES)
    assert len(hostile_checks(packed=True)) == len(PACKED)
    assert set(DEMANDED) <= {case.name.split()[0] for case in CASES}


def test_the_page_shows_checks_that_exist():
    page = (ROOT / "docs/conformance.md").read_text()
    titles = {f"{check.name} {check.title}" for packed in (False, True) for check in hostile_checks(packed=packed)}
    shown = re.findall(r"^\| ([kcp]\d+\w* [^|]*) \|", page, re.MULTILINE)
    assert len(shown) > 30
    assert set(shown) <= titles | {f"{check.name} {check.title}" for check in CONTRACT}


def test_a_guest_without_the_port_fails_every_check(capsys, monkeypatch):
    monkeypatch.setattr("virtserial.conformance.guest_target.PORT_HELPERS", PORT_HELPERS.replace("=20", "=0.1"))
    status, told = run(capsys, "guest:sh -c", "g01", "g05", "--host", "org.no.port=unix:/nowhere")
    assert status == 1
    assert told.out.count("FAILED") == 2 + 1
    assert "it did not happen" in told.out
