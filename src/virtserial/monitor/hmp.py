"""The HMP commands: how a line is read, what of `Operations` it is, what it prints (QEMU's hmp-commands.hx)."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError, VirtserialError
from virtserial.monitor import qom
from virtserial.named_tuple import NamedTuple
from virtserial.options import chardev_options, device_options, keyval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from virtserial.chardev.base import Chardev
    from virtserial.machine.model import Controller, Port
    from virtserial.monitor.descriptors import Client
    from virtserial.monitor.operations import Operations


class HmpError(VirtserialError):
    """A line that cannot be run; the text is printed as it is."""


class HmpCommand(NamedTuple):
    """A command.

    Attributes:
        run: called with the operations, the client and the words; returns what it prints, None for nothing.
        arguments: as help shows them, optional ones in [].
        words: how few and how many it takes.
        candidates: returns what the last word could become.
    """

    run: Callable[..., str | None]
    arguments: str
    description: str
    words: tuple[int, int] = (0, 0)
    candidates: Callable[[Operations, int], Sequence[str]] = lambda _, __: ()


def run_line(operations: Operations, client: Client, line: str) -> str:
    """Run a line and return what it prints, ended by a newline."""
    try:
        return run(operations, client, line)
    except VirtserialError as error:
        return printed_error(error)


def printed_error(error: VirtserialError) -> str:
    """What a line prints that failed."""
    return f"{error}\n" if isinstance(error, HmpError) else f"Error: {error}\n"


def run(operations: Operations, client: Client, line: str) -> str:
    """Run a line and return what it prints.

    Raises:
        HmpError: it cannot be run.
        VirtserialError: the command is refused.
    """
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
    return command.run(operations, client, *words) or ""


def _words(text: str) -> list[str]:
    splitter = shlex.shlex(text, posix=True, punctuation_chars=False)
    splitter.whitespace_split, splitter.commenters, splitter.quotes = True, "", '"'
    try:
        return list(splitter)
    except ValueError:
        raise HmpError("unterminated string") from None


# Commands


def _help(_: Operations, __: Client, text: str = "") -> str:
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


def _device_add(operations: Operations, _: Client, text: str = "") -> str:
    driver, _comma, rest = text.partition(",")
    if driver in ("help", "?"):
        return "".join(f'name "{name}", bus {_bus_of(name)}\n' for name in device_options.DRIVERS)
    if rest in ("help", "?"):
        return device_options.device_help(driver)
    operations.add_device(device_options.parse_device(text))
    return ""


def _bus_of(driver: str) -> str:
    return "PCI" if driver in (*device_options.CONTROLLERS, device_options.VHOST_USER) else "virtio-serial-bus"


def _chardev_add(operations: Operations, _: Client, text: str) -> str:
    if text in ("help", "?"):
        return chardev_options.chardev_help()
    keeper = operations.keeper
    return _announced(operations.add_chardev(chardev_options.parse_chardev(text, keeper.chardevs, keeper.objects)))


def _chardev_change(operations: Operations, _: Client, chardev_id: str, text: str) -> str:
    if "id" in keyval.parse_options(text, "backend"):
        raise ConfigError("Unexpected 'id' parameter")
    option, objects = with_id(text, chardev_id), operations.keeper.objects
    return _announced(
        operations.change_chardev(chardev_id, lambda: chardev_options.parse_chardev(option, objects=objects))
    )


def with_id(text: str, chardev_id: str) -> str:
    """The -chardev argument of chardev-change's words."""
    return f"{text},{keyval.to_text([('id', chardev_id)])}"


def _announced(chardev: Chardev) -> str:
    return f"{chardev.announcement}\n" if chardev.announcement else ""


def _ringbuf_read(operations: Operations, _: Client, chardev_id: str, size: str) -> str:
    data = operations.read_ringbuf(chardev_id, int(size) if size.isdigit() else 0)
    return "".join(map(_printable, data.decode(errors="replace"))) + "\n"


def _printable(character: str) -> str:
    if character == "\\":
        return "\\\\"
    is_control = (character < " " and character != "\n") or character == "\x7f"
    return f"\\u{ord(character):04X}" if is_control else character


def _info_chardev(operations: Operations, _: Client) -> str:
    return chardev_lines(operations.query_chardev())


def chardev_lines(chardevs: Sequence[Mapping[str, object]]) -> str:
    """What `info chardev` prints of query-chardev's answer."""
    return "".join(f"{chardev['label']}: filename={chardev['filename']}\n" for chardev in chardevs)


def _info_qtree(operations: Operations, _: Client, option: str = "") -> str:
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
    """Return what the last word of a line could become, and how many of its characters are typed."""
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
_QUIT: Final = HmpCommand(lambda operations, _: operations.quit(), "", "quit the emulator")

COMMANDS: Final[Mapping[str, HmpCommand]] = {
    "chardev-add": HmpCommand(_chardev_add, "args", "add chardev", (1, 1), _chardev_kinds),
    "chardev-change": HmpCommand(_chardev_change, "id args", "change chardev", (2, 2), _chardev_ids),
    "chardev-remove": HmpCommand(
        lambda operations, _, name: operations.remove_chardev(name), "id", "remove chardev", (1, 1), _chardev_ids
    ),
    "chardev-send-break": HmpCommand(
        lambda operations, _, name: operations.send_break(name), "id", "send a break on chardev", (1, 1), _chardev_ids
    ),
    "closefd": HmpCommand(
        lambda _, client, name: client.names.close_one(name),
        "closefd name", "close a file descriptor previously passed via SCM rights", (1, 1),
    ),
    "device_add": HmpCommand(
        _device_add, "driver[,prop=value][,...]", "add device, like -device on the command line", (0, 1), _drivers
    ),
    "device_del": HmpCommand(
        lambda operations, _, name: operations.delete_device(name), "device", "remove device", (1, 1), _device_ids
    ),
    "getfd": HmpCommand(
        lambda _, client, name: client.name_descriptor(name),
        "getfd name", "receive a file descriptor via SCM rights and assign it a name", (1, 1),
    ),
    "help": _HELP,
    "?": _HELP,
    "info": HmpCommand(lambda *_: _help_info(), "[subcommand]", "show various information about the system state",
                       (0, 9), _info_names),
    "quit": _QUIT,
    "q": _QUIT,
    "ringbuf_read": HmpCommand(_ringbuf_read, "device size", "Read from a ring buffer character device", (2, 2),
                               _chardev_ids),
    "ringbuf_write": HmpCommand(
        lambda operations, _, name, data: operations.write_ringbuf(name, data.encode(errors="surrogateescape")),
        "device data", "Write to a ring buffer character device", (2, 2), _chardev_ids,
    ),
}  # fmt: skip

INFO: Final[Mapping[str, HmpCommand]] = {
    "chardev": HmpCommand(_info_chardev, "", "show the character devices"),
    "qtree": HmpCommand(_info_qtree, "[-b]", "show device tree (-b: brief, omit properties)", (0, 1)),
    "status": HmpCommand(lambda *_: "VM status: running\n", "", "show the current VM status (running|paused)"),
}
