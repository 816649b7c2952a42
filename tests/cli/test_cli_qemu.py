"""The `virtserial-qemu` program: --explain, its names, and what it says of wrong words."""

from __future__ import annotations

import os
import tomllib

import pytest
from support.places import ROOT
from support.programs import run

from virtserial.dropin.program import architecture_of, find_program
from virtserial.errors import ConfigError


def run_qemu(*words, program=("-m", "virtserial.cli.qemu"), qemu="/bin/true"):
    return run(*words, program=program, VIRTSERIAL_QEMU=qemu)


def test_explain_prints_qemu_s_command_line_and_whose_everything_is():
    status, output, errors = run_qemu(
        "--explain", "-m", "256", "-nodefaults", "-device", "virtio-serial,id=ser0,socket=/tmp/a b",
        "-chardev", "null,id=c", "-device", "virtserialport,chardev=c",
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert output == """\
/bin/true \\
  -m 256 \\
  -nodefaults \\
  -device '{"driver":"vfio-user-pci","id":"ser0","socket":{"type":"unix","path":"/tmp/a b"}}' \\
  -object memory-backend-memfd,id=pc.ram,size=256M,share=on \\
  -machine memory-backend=pc.ram \\
  -chardev socket,id=virtserial-control,fd=64 \\
  -qmp chardev:virtserial-control
# chardev c (null): virtserial's -device virtserialport,chardev=c
# controller ser0, bus ser0.0: at /tmp/a b
# port 1 of ser0: -device virtserialport,chardev=c
# descriptor 64: control
"""


def test_explain_may_stand_anywhere():
    words = ["-m", "256", "-machine", "none"]
    options = [[*words[:at], "--explain", *words[at:]] for at in (0, 2, 4)]
    assert len({run_qemu(*each) for each in options}) == 1
    # But the argument of an option is that, whatever it looks like.
    status, output, _ = run_qemu("-machine", "none", "-name", "--explain", qemu="/bin/echo")
    assert (status, output) == (0, "-machine none -name --explain\n")


def test_explain_says_why_nothing_is_ours():
    status, output, _ = run_qemu("--explain", "-machine", "none", "-S")
    assert status == 0
    assert output == """\
/bin/true \\
  -machine none \\
  -S
# unchanged: -machine none has no devices
"""


@pytest.mark.parametrize(("word", "said"), [("--version", "virtserial-qemu, "), ("--help", "usage: ")])
def test_help_and_version_speak_of_both(word, said):
    status, output, errors = run_qemu(word)  # the QEMU is /bin/true
    assert (status, errors) == (0, "")
    assert output.startswith(said)
    assert output.startswith(run_qemu("-m", "64", word)[1].rstrip())
    assert run_qemu(word[1:])[1] == ""


def test_help_needs_no_qemu():
    status, output, errors = run_qemu("--help", qemu="/nowhere/qemu")
    assert (status, output[:6]) == (0, "usage:")
    assert errors.splitlines()[0] == "virtserial-qemu: VIRTSERIAL_QEMU=/nowhere/qemu: no such program"


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (("-device", "virtio-serial,help"), "virtserial adds unplug=, socket=, resize-order=; "),
        (("-device", "virtconsole,?"), "virtserial adds cols=, rows=; "),
        (("-chardev", "help"), "virtserial adds the kind handler"),
    ],
)
def test_qemu_s_help_is_qemu_s_and_what_we_add_is_on_standard_error(words, added):
    status, output, errors = run_qemu(*words, qemu="/bin/echo")
    assert (status, output) == (0, f"{' '.join(words)}\n")
    assert errors.startswith(f"virtserial-qemu: {' '.join(words)}: {added}")


def test_name_that_was_probably_meant_is_a_second_line():
    _, _, errors = run_qemu("-device", "virtio-serial", "-device", "virtserialport,nam=x")
    assert errors == (
        "virtserial-qemu: -device virtserialport,nam=x: Property 'virtserialport.nam' not found\n"
        "virtserial-qemu: did you mean 'name'?\n"
    )


def test_explain_says_what_is_wrong():
    status, output, errors = run_qemu("--explain", "-device", "virtio-serial", "-device", "virtserialport,nr=99")
    assert (status, output) == (1, "")
    assert errors == (
        "virtserial-qemu: -device virtserialport,nr=99: "
        "virtio-serial-bus: Out-of-range port id specified, max. allowed: 30\n"
        "virtserial-qemu: give controller virtio-serial0 a larger max_ports=, up to 511\n"
    )


def test_explain_starts_nothing(tmp_path):
    path = tmp_path / "socket"
    status, _, _ = run_qemu("--explain", "-device", "virtio-serial", "-chardev", f"socket,id=c,path={path},server=on")
    assert status == 0
    assert not path.exists()


def test_words_that_do_not_concern_us_become_those_of_qemu():
    assert run_qemu("a disk", "-version", qemu="/bin/echo") == (0, "a disk -version\n", "")


def test_installed_program_is_this_one():
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["scripts"]["virtserial-qemu"] == "virtserial.cli.qemu:main"
    entry = ("-c", "import sys; from virtserial.cli.qemu import main; sys.exit(main())")
    assert run_qemu("--explain", "-S", program=entry) == run_qemu("--explain", "-S")


@pytest.mark.parametrize(
    ("called_as", "architecture"),
    [
        ("/usr/bin/virtserial-qemu-aarch64", "aarch64"),
        ("virtserial-qemu-system-riscv64", "riscv64"),
        ("/x/qemu-system-arm", "arm"),
        ("virtserial-qemu", os.uname().machine),
    ],
)
def test_name_tells_the_architecture(called_as, architecture):
    assert architecture_of(called_as) == architecture


def test_qemu_is_found_on_path_but_not_ourselves(tmp_path, monkeypatch):
    monkeypatch.delenv("VIRTSERIAL_QEMU", raising=False)
    ours, real = tmp_path / "ours" / "qemu-system-x86_64", tmp_path / "real" / "qemu-system-x86_64"
    for path in (ours, real):
        path.parent.mkdir()
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ours.parent}:{real.parent}")
    assert find_program("x86_64", str(ours)) == str(real)
    monkeypatch.setenv("PATH", str(ours.parent))
    with pytest.raises(ConfigError, match="qemu-system-x86_64 not found on PATH"):
        find_program("x86_64", str(ours))
    monkeypatch.setenv("VIRTSERIAL_QEMU", str(real))
    assert find_program("aarch64", str(ours)) == str(real)


def test_planning_does_not_load_what_is_slow_to_load():
    program = """
import sys
import virtserial.cli.qemu, virtserial.dropin.launch, virtserial.dropin.planner, virtserial.dropin.program
print([name for name in ("asyncio", "argparse", "subprocess", "ssl", "tempfile", "shutil") if name in sys.modules])
"""
    assert run_qemu(program=("-c", program)) == (0, "[]\n", "")
