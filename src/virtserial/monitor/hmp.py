"""HMP, the monitor for people: its commands, its help and what can be completed (QEMU's hmp-commands.hx)."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final, NamedTuple

from virtserial.errors import ConfigError, VirtserialError
from virtserial.monitor import qom
from virtserial.monitor.readline import Readline
from virtserial.options import chardev_options, device_options, keyval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from virtserial.machine.model import Controller, Port
    from virtserial.monitor.operations import Operations

PROMPT: Final = "(qemu) "
MAX_RINGBUF_READ: Final = 1 << 20
"""Bytes that ringbuf_read shows at once; the rest waits for the next."""
BANNER: Final = "QEMU {major}.{minor}.{micro} monitor - type 'help' for more information\n"


class HmpError(VirtserialError):
    """A line that cannot be run; the text is all of it."""


class HmpCommand(NamedTuple):
    """A command.

    Attributes:
        run: takes as many words as there are required arguments (an optional one may be missing).
        arguments: how help shows them; in [] an optional one.
        words: the least and the greatest number of words it takes.
        candidates: gives what the last word could become.
    """

    run: Callable[..., str]
    arguments: str
    description: str
    words: tuple[int, int] = (0, 0)
    candidates: Callable[[Operations, int], Sequence[str]] = lambda _, __: ()


def run_line(operations: Operations, line: str) -> str:
    """Run a line and return what it prints, its lines ended by a newline."""
    try:
        return _run(operations, line)
    except HmpError as error:
        return f"{error}\n"
    except VirtserialError as error:
        return f"Error: {error}\n"


def _run(operations: Operations, line: str) -> str:
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if not name:
        return ""
    command, shown, full = COMMANDS.get(name), name, name
    if name == "info":
        if not rest:
            return _help_info()
        item, _, rest = rest.partition(" ")
        command, shown, full = INFO.get(item), item, f"info {item}"
    if command is None:
        raise HmpError(f"unknown command: '{full}'")
    words = _words(rest) if command.words[1] < 9 else [rest]
    hint = f'Try "help {full}" for more information'
    if len(words) < command.words[0]:
        raise HmpError(f"{shown}: string expected\n{hint}")
    if len(words) > command.words[1]:
        raise HmpError(f"{shown}: extraneous characters at the end of line\n{hint}")
    return command.run(operations, *words)


def _words(text: str) -> list[str]:
    splitter = shlex.shlex(text, posix=True, punctuation_chars=False)
    splitter.whitespace_split, splitter.commenters, splitter.quotes = True, "", '"'
    try:
        return list(splitter)
    except ValueError:
        raise HmpError("unterminated string") from None


# Commands


def _help(_: Operations, text: str) -> str:
    words = text.split()
    if not words:
        return "".join(map(_help_line, COMMANDS))
    if words[0] == "info":
        return _help_info() if len(words) == 1 else _help_of(INFO, words[1], " ".join(words[:2]))
    return _help_of(COMMANDS, words[0], words[0])


def _help_of(commands: Mapping[str, HmpCommand], name: str, full: str) -> str:
    if name not in commands:
        raise HmpError(f"unknown command: '{full}'")
    return _help_line(name, commands)


def _help_line(name: str, commands: Mapping[str, HmpCommand] | None = None) -> str:
    command = (commands or COMMANDS)[name]
    names = "|".join(other for other, same in (commands or COMMANDS).items() if same is command)
    if commands is not INFO and names.partition("|")[0] != name and commands is None:
        return ""  # An alias, shown with its command.
    prefix = "info " if commands is INFO else ""
    return f"{prefix}{names} {command.arguments} -- {command.description}\n"


def _help_info() -> str:
    return "".join(_help_line(name, INFO) for name in INFO)


def _device_add(operations: Operations, text: str) -> str:
    driver, _, rest = text.partition(",")
    if driver in ("help", "?"):
        return "".join(f'name "{name}", bus {_bus_of(name)}\n' for name in device_options.DRIVERS)
    if rest in ("help", "?"):
        return device_options.device_help(driver)
    operations.add_device(device_options.parse_device(text))
    return ""


def _bus_of(driver: str) -> str:
    return "PCI" if driver in device_options.CONTROLLERS else "virtio-serial-bus"


def _device_del(operations: Operations, name: str) -> str:
    operations.delete_device(name)
    return ""


def _chardev_add(operations: Operations, text: str) -> str:
    if text in ("help", "?"):
        return chardev_options.chardev_help()
    chardev = chardev_options.parse_chardev(text, operations.keeper.chardevs, operations.keeper.objects)
    operations.add_chardev(chardev.id, lambda: chardev)
    return f"{chardev.announcement}\n" if chardev.announcement else ""


def _chardev_change(operations: Operations, chardev_id: str, text: str) -> str:
    if "id" in keyval.parse_options(text, "backend"):
        raise ConfigError("Unexpected 'id' parameter")
    # An id as it is written in an option: a comma in it is doubled.
    option = f"{text},id={chardev_id.replace(',', ',,')}"
    objects = operations.keeper.objects
    chardev = operations.change_chardev(
        chardev_id, lambda: chardev_options.parse_chardev(option, objects=objects)
    )
    return f"{chardev.announcement}\n" if chardev.announcement else ""


def _chardev_remove(operations: Operations, chardev_id: str) -> str:
    operations.remove_chardev(chardev_id)
    return ""


def _chardev_send_break(operations: Operations, chardev_id: str) -> str:
    operations.send_break(chardev_id)
    return ""


def _ringbuf_write(operations: Operations, chardev_id: str, data: str) -> str:
    operations.find_ringbuf(chardev_id).write(data.encode(errors="surrogateescape"))
    return ""


def _ringbuf_read(operations: Operations, chardev_id: str, size: str) -> str:
    if not size.isdigit() or not int(size):
        raise ConfigError("size must be greater than zero")
    text = operations.find_ringbuf(chardev_id).read(min(int(size), MAX_RINGBUF_READ)).decode(errors="replace")
    return "".join(map(_printable, text)) + "\n"


def _printable(character: str) -> str:
    if character == "\\":
        return "\\\\"
    is_control = (character < " " and character != "\n") or character == "\x7f"
    return f"\\u{ord(character):04X}" if is_control else character


def _quit(operations: Operations) -> str:
    operations.quit()
    return ""


def _info_chardev(operations: Operations) -> str:
    return "".join(
        f"{label}: filename={filename}\n"
        for chardev in operations.chardevs()
        for label, filename in chardev.listing()
    )


def _info_status(_: Operations) -> str:
    return "VM status: running\n"


def _info_qtree(operations: Operations, option: str = "") -> str:
    if option not in ("", "-b"):
        raise HmpError('qtree: invalid option\nTry "help info qtree" for more information')
    lines = ["bus: main-system-bus", "  type System"]
    for controller in operations.keeper.machine.controllers:
        lines += _device_lines(operations, controller, 2, brief=bool(option))
        lines += bus_lines(operations, controller, 4, brief=bool(option))
    return "\n".join(lines) + "\n"


def bus_lines(operations: Operations, controller: Controller, indent: int, *, brief: bool) -> list[str]:
    """A controller's bus and the ports on it, as `info qtree` shows them."""
    lines = [f"{' ' * indent}bus: {controller.bus}", f"{' ' * indent}  type virtio-serial-bus"]
    # QEMU shows the device that was added last first.
    for port in reversed(controller.ports.values()):
        lines += _device_lines(operations, port, indent + 2, brief=brief)
        if not brief:
            lines.append(f"{' ' * indent}    {_port_state(operations, port)}")
    return lines


def _device_lines(operations: Operations, device: Controller | Port, indent: int, brief: bool) -> list[str]:
    lines = [f'{" " * indent}dev: {qom.driver_of(device)}, id "{device.id or ""}"']
    if not brief:
        for name, (_, value) in qom.device_properties(operations, device).items():
            lines.append(f"{' ' * indent}  {name} = {_shown(value)}")
    return lines


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value} (0x{value:x})" if isinstance(value, int) else f'"{value}"'


def _port_state(operations: Operations, port: Port) -> str:
    state = operations.keeper.hotplug.port_state(port)
    words = [f"{name} {'on' if value else 'off'}" for name, value in state.items()]
    return f"port {port.number}, {', '.join(words)}"


# What can be completed


def _drivers(_: Operations, index: int) -> Sequence[str]:
    return tuple(device_options.DRIVERS) if index == 0 else ()


def _device_ids(operations: Operations, index: int) -> Sequence[str]:
    return [port.id for port in operations.keeper.machine.ports() if port.id is not None] if index == 0 else ()


def _chardev_kinds(_: Operations, index: int) -> Sequence[str]:
    return chardev_options.kinds() if index == 0 else ()


def _chardev_ids(operations: Operations, index: int) -> Sequence[str]:
    if index == 1:
        return chardev_options.kinds()
    return [chardev.id for chardev in operations.chardevs()] if index == 0 else ()


def _command_names(_: Operations, index: int) -> Sequence[str]:
    return tuple(COMMANDS) if index == 0 else ()


def _info_names(_: Operations, index: int) -> Sequence[str]:
    return tuple(INFO) if index == 0 else ()


def candidates(operations: Operations, text: str) -> tuple[Sequence[str], int]:
    """Return what the last word of a line could become, and how much of that is typed."""
    words = text.split(" ")
    words = [word for word in words[:-1] if word] + words[-1:]
    last = words[-1]
    if len(words) == 1:
        choices: Sequence[str] = tuple(COMMANDS)
    elif words[0] in COMMANDS:
        choices = COMMANDS[words[0]].candidates(operations, len(words) - 2)
    else:
        choices = ()
    return [choice for choice in choices if choice.startswith(last)], len(last)


_HELP: Final = HmpCommand(_help, "[cmd]", "show the help", (0, 9), _command_names)
_QUIT: Final = HmpCommand(_quit, "", "quit the emulator")

COMMANDS: Final[Mapping[str, HmpCommand]] = {
    "chardev-add": HmpCommand(_chardev_add, "args", "add chardev", (1, 1), _chardev_kinds),
    "chardev-change": HmpCommand(_chardev_change, "id args", "change chardev", (2, 2), _chardev_ids),
    "chardev-remove": HmpCommand(_chardev_remove, "id", "remove chardev", (1, 1), _chardev_ids),
    "chardev-send-break": HmpCommand(_chardev_send_break, "id", "send a break on chardev", (1, 1), _chardev_ids),
    "device_add": HmpCommand(
        lambda operations, *text: _device_add(operations, *(text or ("",))),
        "driver[,prop=value][,...]",
        "add device, like -device on the command line",
        (0, 1),
        _drivers,
    ),
    "device_del": HmpCommand(_device_del, "device", "remove device", (1, 1), _device_ids),
    "help": _HELP,
    "?": _HELP,
    "info": HmpCommand(lambda *_: _help_info(), "[subcommand]", "show various information about the system state",
                       (0, 9), _info_names),
    "quit": _QUIT,
    "q": _QUIT,
    "ringbuf_read": HmpCommand(_ringbuf_read, "device size", "Read from a ring buffer character device", (2, 2),
                               _chardev_ids),
    "ringbuf_write": HmpCommand(_ringbuf_write, "device data", "Write to a ring buffer character device", (2, 2),
                                _chardev_ids),
}  # fmt: skip

INFO: Final[Mapping[str, HmpCommand]] = {
    "chardev": HmpCommand(_info_chardev, "", "show the character devices"),
    "qtree": HmpCommand(_info_qtree, "[-b]", "show device tree (-b: brief, omit properties)", (0, 1)),
    "status": HmpCommand(_info_status, "", "show the current VM status (running|paused)"),
}


class HmpSession:
    """One person's (or script's) line, without I/O; `prompt` begins it.

    Args:
        version: QEMU's, as query-version has it.
        complete: gives what the last word of a line could become, and how much of that is typed.
    """

    def __init__(self, version: Mapping[str, int], complete: Callable[[str], tuple[Sequence[str], int]]) -> None:
        self._readline = Readline(PROMPT, complete)
        self._out = [BANNER.format(**version)]

    def hand_over(self) -> dict[str, object]:
        """Return what another process has to know to go on (`resume`)."""
        return self._readline.hand_over()

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Go on where another process has left off, without a banner."""
        self._out.clear()
        self._readline.resume(saved)

    def receive(self, data: bytes) -> Iterator[str]:
        """Take what was typed; yield each line that it ends, to be answered before the next is asked for."""
        # A byte is a character: the line's length is QEMU's, and any encoding passes as it is.
        for character in data.decode("latin-1"):
            line = self._readline.type(character)
            self._collect()
            if line is not None:
                yield line.encode("latin-1").decode(errors="surrogateescape")

    def answer(self, printed: str) -> None:
        """Show what a line has printed, and the prompt."""
        self._out.append(printed.encode(errors="surrogateescape").decode("latin-1"))
        self.prompt()

    def prompt(self) -> None:
        """Begin a line."""
        self._readline.show_prompt()
        self._collect()

    def leave(self) -> None:
        """The focus goes to another user of the chardev."""
        self._out.append("\n")

    def _collect(self) -> None:
        self._out.append(self._readline.output())

    def data_to_send(self) -> bytes:
        """Return what is to be sent, once."""
        data = "".join(self._out).replace("\n", "\r\n").encode("latin-1")
        self._out.clear()
        return data
