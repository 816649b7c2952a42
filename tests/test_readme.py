"""What README.md shows works: its transcript and its demo run as they stand, on a machine with nothing else."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import subprocess

import pytest
from support.built import build_pyz
from support.empty_machine import empty_machine
from support.fetched import fetch_or_skip
from support.places import ROOT
from support.transcript import Reader, Step, parse_transcripts

from virtserial.rig.image import guest_image
from virtserial.rig.qemu import find_qemu

README = (ROOT / "README.md").read_text()
FEATURES = (ROOT / "docs/features.md").read_text()


def test_transcript_is_read_with_continued_lines_and_output():
    steps = parse_transcripts("<!-- transcript -->\n```console\nhost$ a \\\n    b\nc\n\nguest# d\n```\n")
    assert steps == [Step("host$", "a b", ["c"]), Step("guest#", "d", [])]


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """With Python, socat, virtserial.pyz and this source tree."""
    pyz = build_pyz(tmp_path_factory.mktemp("built"))
    names = ("virtserial", "virtserial-qemu", "virtserial-vhost-user")
    with empty_machine([(name, pyz) for name in names], [ROOT]) as machine:
        yield machine


@pytest.mark.qemu
@pytest.mark.timeout(300)
def test_transcript_runs_as_it_stands(machine):
    fetch_or_skip(find_qemu)
    fetch_or_skip(guest_image)
    steps = parse_transcripts(README)
    assert {step.where for step in steps} == {"host$", "guest#"}
    assert sum(bool(step.expected) for step in steps) >= 4
    with contextlib.ExitStack() as stack:
        reader = Reader(machine, stack)
        for step in steps:
            reader.do(step)


@pytest.mark.timeout(300)
def test_the_tutorial_runs_as_it_stands(machine):
    steps = parse_transcripts((ROOT / "docs/tutorial.md").read_text())
    assert len(steps) > 12
    with contextlib.ExitStack() as stack:
        reader = Reader(machine, stack)
        for step in steps:
            reader.do(step)


@pytest.mark.parametrize("program", [f"{ROOT}/scripts/demo", "virtserial demo"])
def test_the_demo_runs_on_an_empty_machine(machine, program):
    command = machine.command(*program.split(), "--size", "1", network=False)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("all sha1sums are equal")


def test_the_zip_archive_is_each_of_the_programs(machine):
    for words, says in (
        (["virtserial", "--version"], "virtserial "),
        (["virtserial-vhost-user", "--print-capabilities"], '"type"'),
        (["virtserial-qemu", "--explain", "-device", "virtio-serial"], "vfio-user-pci"),
    ):
        done = subprocess.run(machine.command(*words), capture_output=True, text=True, timeout=60)
        assert says in done.stdout, (words, done)


def table_behind(marker):
    """The lines of the table behind a comment in docs/features.md."""
    text = FEATURES.split(f"<!-- {marker} -->\n")[1]
    return text.split("\n\n")[0].splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_of_connected_ports_is_the_one_its_command_prints():
    """Its head and its columns: the numbers are held by tests/interop/test_many_ports.py."""
    module = re.search(r"`PYTHONPATH=src:tests python3 -m (\S+)` prints this table", FEATURES).group(1)
    program = importlib.import_module(module)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        program.main([])
    head, rule = printed.getvalue().splitlines()
    table = table_behind("connected-ports")
    assert table[:2] == [head, rule]
    assert {len(cells(row)) for row in table[2:]} == {len(cells(head))}
    assert {cells(row)[0].split()[0] for row in table[2:]} >= {"30", "510"}


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_commands_of_the_readme_are_there():
    for command in re.findall(r"\./scripts/\w+", README):
        assert os.access(ROOT / command, os.X_OK), command
