"""Completions of all programs for bash, zsh and fish, by shtab from the programs' own parsers.

    python3 packaging/completions/generate.py            # writes them beside this file
    python3 packaging/completions/generate.py FOLDER     # or elsewhere

A command's parser is taken when the command is about to use it, so a new command or option needs nothing here.  What an
argument takes is told by its metavar.  Names of machines and ports come from `virtserial ls` and `virtserial ports`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import shtab

from virtserial.cli.commands import COMMANDS
from virtserial.cli.serve_options import LOG_FORMATS, TAKES_NEXT
from virtserial.dropin.command_line import WITHOUT_ARGUMENT
from virtserial.guest import __main__ as guest
from virtserial.options.chardev_options import kinds
from virtserial.options.device_options import ALIASES, DRIVERS
from virtserial.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
SHELLS = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}
"""Each shell's files."""
VM = shtab.cmd("virtserial ls --names 2>/dev/null")
PORT = shtab.cmd("virtserial ports --names 2>/dev/null")
GUEST_PORT = shtab.cmd("virtserial-guest ports --names 2>/dev/null")
PCI = shtab.cmd("ls /sys/bus/pci/devices")
TAKES = {
    "VM": VM, "PORT": PORT, "ADDRESS": PCI, "FOLDER": shtab.DIRECTORY, "DIR": shtab.DIRECTORY,
    **dict.fromkeys(("FILE", "PATH", "SOCKET", "QMP", "DEVICE", "STATE"), shtab.FILE),
}  # fmt: skip
"""What arguments take, by their metavars."""
QEMU_VALUES = (
    *("M", "accel", "acpitable", "action", "add-fd", "append", "audio", "audiodev", "bios", "blockdev", "boot"),
    *("cdrom", "chardev", "compat", "cpu", "d", "debugcon", "device", "dfilter", "display", "drive", "dtb"),
    *("dump-vmstate", "echr", "fda", "fsdev", "fw_cfg", "gdb", "global", "hda", "hdb", "hdc", "hdd", "icount"),
    *("incoming", "initrd", "iscsi", "k", "kernel", "loadvm", "m", "machine", "mem-path", "mon", "monitor", "msg"),
    *("mtdblock", "name", "net", "netdev", "nic", "numa", "object", "option-rom", "overcommit", "parallel", "pflash"),
    *("pidfile", "plugin", "qmp", "qmp-pretty", "readconfig", "rtc", "run-with", "sandbox", "sd", "seed", "serial"),
    *("set", "shim", "smbios", "smp", "spice", "tpmdev", "trace", "usbdevice", "uuid", "vga", "virtfs", "vnc"),
    *("watchdog-action", "xen-domid"),
)
"""QEMU 11.1's options that take an argument and that people type."""


class _Taken(Exception):
    """A command has come to its parser."""


def parser_of(run: Callable[[], object]) -> argparse.ArgumentParser:
    """Return the parser that a command is about to use."""
    found: list[argparse.ArgumentParser] = []

    def take(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        found.append(self)
        raise _Taken

    plain = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = take  # type: ignore[assignment, method-assign]
    try:
        run()
    except _Taken:
        pass
    finally:
        argparse.ArgumentParser.parse_known_args = plain  # type: ignore[method-assign]
    return found[0]


def hand_written(name: str, *arguments: tuple[str, str, str]) -> argparse.ArgumentParser:
    """A parser for a command that has none: (option or word, its metavar or "", what it is)."""
    parser = argparse.ArgumentParser(prog=f"virtserial {name}")
    for word, metavar, what in arguments:
        if metavar:
            parser.add_argument(*spellings(word), metavar=metavar, help=what, nargs=None if word[0] == "-" else "*")
        else:
            parser.add_argument(*spellings(word), action="store_true", help=what)
    return parser


def spellings(word: str) -> list[str]:
    """QEMU's options have one dash or two; fish knows single letters behind one."""
    return [word, f"-{word}"] if ONE_DASH and word[:1] == "-" and word[1:2] != "-" and len(word) > 2 else [word]


ONE_DASH = False


def serve() -> argparse.ArgumentParser:
    """The options of `virtserial serve`, which reads them without argparse."""
    words = [(word if ONE_DASH or len(word) == 2 else f"-{word}", word[1:].upper(), "") for word in TAKES_NEXT]
    flags = [(f"--{word}", "", "") for word in ("trust-vmm", "exit-with-parent", "print-capabilities", "verbose")]
    parser = hand_written("serve", *words, *flags)
    for action in parser._actions:
        if "--device" in action.option_strings:
            action.choices = [*ALIASES, *DRIVERS, "help"]
        elif "--log-format" in action.option_strings:
            action.choices = LOG_FORMATS
        elif "--chardev" in action.option_strings:
            action.choices = [*kinds(), "help"]
    return parser


def drive() -> argparse.ArgumentParser:
    """`virtserial guest`, whose commands have parsers of their own, or none."""
    from virtserial.cli import guest as command

    parser = argparse.ArgumentParser(prog="virtserial guest")
    add_commands(parser, {
        "attach": (parser_of(lambda: command.attach([])), "drive devices"),
        "bind": (hand_written("guest bind", ("address", "ADDRESS", "a PCI function")), "bind functions to vfio-pci"),
        "unbind": (hand_written("guest unbind", ("address", "ADDRESS", "a PCI function")), "give functions back"),
    })  # fmt: skip
    return parser


def add_commands(parser: argparse.ArgumentParser, commands: dict[str, tuple[argparse.ArgumentParser, str]]) -> None:
    """Make parsers the commands of another."""
    action = parser.add_subparsers()
    for name, (command, what) in commands.items():
        action._name_parser_map[name] = command
        action._choices_actions.append(action._ChoicesPseudoAction(name, (), what))


def virtserial() -> argparse.ArgumentParser:
    """The whole program."""
    special: dict[str, Callable[[], argparse.ArgumentParser]] = {
        "serve": serve,
        "guest": drive,
        "ssh": lambda: hand_written("ssh", ("vm", "VM", "a virtual machine")),
    }
    commands = {}
    for name, what in COMMANDS.items():
        module = importlib.import_module(f"virtserial.cli.{name.replace('-', '_')}")
        commands[name] = (special[name]() if name in special else parser_of(lambda run=module.run: run([]))), what
    parser = argparse.ArgumentParser(prog="virtserial")
    parser.add_argument("--version", action="version", version=__version__, help="print the version")
    add_commands(parser, commands)
    return parser


def virtserial_guest() -> argparse.ArgumentParser:
    """The guest's program."""
    parser = argparse.ArgumentParser(prog="virtserial-guest")
    parser.add_argument("--version", action="version", version=__version__, help="print the version")
    add_commands(parser, {
        name: (parser_of(lambda run=run, name=name: run(f"virtserial-guest {name}", [])), what)
        for name, (what, run) in guest.COMMANDS.items()
    })  # fmt: skip
    return parser


def virtserial_qemu() -> argparse.ArgumentParser:
    """QEMU's options and our own."""
    parser = argparse.ArgumentParser(prog="virtserial-qemu")
    parser.add_argument("--explain", action="store_true", help="print what QEMU would get and what virtserial serves")
    parser.add_argument("--take-hosts-from", metavar="PID", help="with -incoming: take the hosts' connections over")
    parser.add_argument("--version", action="store_true", help="virtserial's and QEMU's")
    for name in QEMU_VALUES:
        action = parser.add_argument(*spellings(f"-{name}" if ONE_DASH else f"--{name}"), metavar="FILE", help=name)
        if name in ("device", "chardev"):
            action.choices = [*ALIASES, *DRIVERS, "help"] if name == "device" else [*kinds(), "help"]
    for name in sorted(WITHOUT_ARGUMENT - {"h", "help", "version"}):
        if len(name) > 1 or ONE_DASH:
            parser.add_argument(*spellings(f"-{name}" if ONE_DASH else f"--{name}"), action="store_true", help=name)
    parser.add_argument("disk", metavar="FILE", nargs="*", help="a disk image")
    return parser


def virtserial_vhost_user() -> argparse.ArgumentParser:
    """The back end program of vhost-user: `virtserial serve` by another name."""
    parser = serve()
    parser.prog = "virtserial-vhost-user"
    return parser


def add_completers(parser: argparse.ArgumentParser, port: object) -> None:
    """Say of every argument what it takes."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                add_completers(command, port)
        elif not action.choices and isinstance(action.metavar, str) and action.metavar in TAKES:
            action.complete = port if action.metavar == "PORT" else TAKES[action.metavar]  # type: ignore[attr-defined]


PROGRAMS = {
    "virtserial": virtserial,
    "virtserial-qemu": virtserial_qemu,
    "virtserial-vhost-user": virtserial_vhost_user,
    "virtserial-guest": virtserial_guest,
}


def generate(folder: Path) -> None:
    """Write the files: SHELL/FILE for the host, guest/SHELL/FILE for the guest's package."""
    global ONE_DASH
    for shell, form in SHELLS.items():
        ONE_DASH = shell != "fish"
        for program, build in PROGRAMS.items():
            parser = build()
            add_completers(parser, GUEST_PORT if program == "virtserial-guest" else PORT)
            place = folder / ("guest" if program == "virtserial-guest" else "") / shell
            place.mkdir(parents=True, exist_ok=True)
            # `virtserial-guest` and `virtserial guest` would be the same word.
            prefix = "in_guest" if program == "virtserial-guest" else None
            text = shtab.complete(parser, shell=shell, root_prefix=prefix)
            (place / form.format(program)).write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
