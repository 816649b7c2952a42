"""The `virtserial` program: help, versions, subcommands, and what is said about wrong words."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest
from support.places import ENVIRONMENT, ROOT
from support.programs import run

import virtserial
from virtserial.cli import health
from virtserial.cli.commands import COMMANDS, GROUPS
from virtserial.cli.main import main


@pytest.mark.parametrize("word", ["--help", "-h", "help", "-help"])
def test_help_names_every_command(word):
    status, output, errors = run(word)
    assert (status, errors) == (0, "")
    assert output.startswith("usage: virtserial COMMAND")
    assert [line.split()[0] for line in output.splitlines() if line.startswith("  ")] == list(COMMANDS)


def test_no_words_at_all_is_the_help_and_a_wrong_use():
    status, output, errors = run()
    assert (status, errors) == (2, "")
    assert output == run("--help")[1]


@pytest.mark.parametrize("word", ["--version", "-V", "-version"])
def test_version_is_the_package_s(word):
    assert run(word) == (0, f"virtserial {virtserial.__version__}\n", "")
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == virtserial.__version__


@pytest.mark.parametrize("words", ["--help", "--version", "serve --help", "ls", "ls --json", "ls --help"])
def test_output_that_cannot_be_written_is_told_in_a_line(folder, words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "virtserial", *words.split()], stdout=full, stderr=subprocess.PIPE, text=True,
            env={**ENVIRONMENT, "VIRTSERIAL_REGISTRY": str(folder), "PYTHONUNBUFFERED": ""},
        )  # fmt: skip
    assert done.stderr == "virtserial: cannot write to standard output: No space left on device\n"
    assert done.returncode == 1


def test_command_that_was_probably_meant_is_named():
    assert run("serv") == (2, "", "virtserial: 'serv' is not a command; did you mean 'serve'?\n")


@pytest.mark.parametrize("word", ["--verbose", "", "xyz", "../zz"])
def test_unknown_command(word):
    assert run(word) == (2, "", f"virtserial: {word!r} is not a command; `virtserial --help` lists them\n")


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_a_help_that_fits_80_columns(command):
    status, output, errors = run(command, "--help", COLUMNS="80")
    assert (status, errors) == (0, "")
    assert output.startswith(f"usage: virtserial {command}")
    assert max(map(len, output.splitlines())) <= 80


def test_help_is_in_groups_and_fits_80_columns():
    assert [line for line in run("--help")[1].splitlines() if line.endswith(":") and line[0] != " "] == [
        f"{title}:" for title in GROUPS
    ]
    for words in ([], ["guest", "attach"]):
        assert max(map(len, run(*words, "--help", COLUMNS="80")[1].splitlines())) <= 80
    output = run("--help", program=("-m", "virtserial.cli.qemu"), VIRTSERIAL_QEMU="/bin/true")[1]
    assert max(map(len, output.splitlines())) <= 80


def test_installed_program_and_module_are_the_same():
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["scripts"]["virtserial"] == "virtserial.cli.main:main"
    entry = ("-c", "import sys; from virtserial.cli.main import main; sys.exit(main())")
    for words in (["--help"], ["serve", "--help"], ["serve", "-bogus"], ["nothing"]):
        assert run(*words, program=entry) == run(*words)


def test_the_vhost_user_back_end_speaks_of_itself():
    def back_end(*words):
        entry = "import sys; from virtserial.cli.vhost_user import main; sys.exit(main())"
        return run(*words, program=("-c", entry))

    assert back_end("--help")[1].splitlines()[0] == (
        "usage: virtserial-vhost-user {--socket-path=PATH | --fd=N} [OPTION...]"
    )
    assert back_end("--version") == (0, f"virtserial-vhost-user {virtserial.__version__}\n", "")
    assert back_end("--xyzzy") == (
        2, "",
        "virtserial-vhost-user: --xyzzy: invalid option\n"
        "virtserial-vhost-user: `virtserial-vhost-user --help` lists the options\n",
    )  # fmt: skip
    assert "no controller: say --socket-path=PATH or --fd=N\n" in back_end("-chardev", "null,id=c")[2]


def test_serve_without_options_is_its_help_and_a_wrong_use():
    status, output, errors = run("serve")
    assert (status, errors) == (2, "")
    assert output == run("serve", "--help")[1]


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["-chardev", "help"], "Available chardev backend types"),
        (["-device", "help"], 'name "virtio-serial-pci", bus PCI, alias "virtio-serial"'),
        (["-object", "help"], "List of user creatable objects"),
        (["-device", "virtserialport,help"], "virtserialport options"),
    ],
)
def test_qemu_s_way_to_ask_for_help(words, first):
    status, output, errors = run("serve", *words)
    assert (status, errors) == (0, "")
    assert output.startswith(first)


def test_importing_the_package_loads_nothing_else():
    program = "import sys; before = set(sys.modules); import virtserial; print(sorted(set(sys.modules) - before))"
    assert run(program=("-c", program)) == (0, "['virtserial']\n", "")


def test_serving_does_not_load_what_is_slow_to_load():
    program = """
import sys
import virtserial.cli.serve, virtserial.daemon.keeper.keeper, virtserial.daemon.worker.worker
print([name for name in ("asyncio", "argparse", "subprocess", "ssl") if name in sys.modules])
"""
    assert run(program=("-c", program)) == (0, "[]\n", "")


def test_ctrl_c_is_no_crash(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(health, "_look", interrupted)
    assert (main(["health", "--wait", "60"]), capsys.readouterr()) == (130, ("", "\n"))


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["conformance", "--help"]], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_of_the_output_that_ends_early_is_not_complained_about(words, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "virtserial", *words]
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
