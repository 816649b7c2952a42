"""The command line of `virtserial serve`, and the machine that it describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.errors import ConfigError, UsageError
from virtserial.options.device_options import ALIASES, DRIVERS, VHOST_USER
from virtserial.options.keyval import did_you_mean
from virtserial.options.machine_name import machine_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.chardev.base import Chardev
    from virtserial.chardev.tls_credentials import TlsCredentials
    from virtserial.machine.model import Machine
    from virtserial.options.monitor_options import MonitorOptions

USAGE = """usage: virtserial serve OPTION...

Devices:
  -device virtio-serial[,id=ID][,socket=PATH][,max_ports=N][,vectors=N]...
                        a controller; it listens at PATH for one VMM at a time
  -device vhost-user-serial[,id=ID][,socket=PATH][,max_ports=N]...
                        the same for a VMM that speaks vhost-user
  -device virtserialport[,bus=ID.0][,nr=N][,name=NAME][,chardev=ID]
                        a port
  -device virtconsole[,bus=ID.0][,nr=N][,name=NAME][,chardev=ID]
                        a console
  -device help          list the devices; -device DRIVER,help their properties
Host ends:
  -chardev KIND,id=ID,...
                        a port's host end; -chardev help lists the kinds
  -object tls-creds-x509,id=ID,dir=PATH,endpoint=server|client
                        certificates for a chardev socket's tls-creds=ID
Monitors:
  -qmp CHARDEV          for programs (QMP), as unix:PATH,server=on,wait=off;
                        -qmp-pretty indents
  -monitor CHARDEV      for people (HMP), as -monitor stdio
  -mon chardev=ID[,mode=readline|control][,pretty=on|off]
                        on a -chardev
The process:
  --name NAME           what `virtserial ls` and names like NAME/PORT call this
                        virtual machine
  --ready-fd N          close descriptor N once every socket is ready
  --exit-with-parent    end when the process that started this one does
  --trust-vmm           map guest memory even if the VMM can take pages away
  --allow-path PATH     let monitors use PATH and everything below it, beside
                        the paths of these options
  --sandbox=off         do not confine the process that handles guests' bytes
  --log-format text|json
                        how the log is written; under systemd, without this, to
                        the journal with its fields
  -D FILE               append the log to FILE, not to standard error
  -v, --verbose         log more (twice: the guest driver's messages too)
By the conventions of vhost-user back ends:
  --socket-path=PATH    a vhost-user-serial controller `vhost-user` at PATH,
  --fd=N                or for the VMM that is connected to descriptor N
  --print-capabilities  print what this back end is, as JSON

Options are QEMU's: key=value with ,, for a comma, or JSON.  When ready it
prints, for each controller, the argument for QEMU (10.1 or newer).  SIGTERM
ends it; SIGUSR2 upgrades it in place to the installed code.
"""


MONITOR_OPTIONS = ("-qmp", "-qmp-pretty", "-monitor", "-mon")
PROCESS_OPTIONS = ("-name", "-ready-fd", "-allow-path", "-log-format", "-D")
TAKES_NEXT = ("-device", "-chardev", "-object", *MONITOR_OPTIONS, *PROCESS_OPTIONS)
"""Options whose argument is the next word."""
LOG_FORMATS = ("text", "json")
KNOWN = (
    *TAKES_NEXT,
    *("-trust-vmm", "-sandbox=off", "-verbose", "-help", "-socket-path=", "-fd=", "-print-capabilities"),
    "-exit-with-parent",
)
HELP = "`virtserial serve --help` lists the options"


class Options:
    """The command line, in order."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.devices: list[str] = []
        self.objects: list[str] = []
        self.chardevs: list[str] = []
        self.monitors: list[tuple[str, str]] = []
        self.name = ""
        self.vmm_fd: str | None = None
        self.print_capabilities = False
        vhost_user_path: str | None = None
        self.ready_fd: str | None = None
        self.exit_with_parent = False
        self.trust_vmm = False
        self.sandbox = True
        self.allowed_paths: list[str] = []
        self.verbosity = 0
        self.log_format = ""
        self.log_file = ""
        self.help = False
        remaining = iter(words)
        for word in remaining:
            option = "-" + word.lstrip("-")
            name, equals, given = option.partition("=")
            if equals and name == "-socket-path":
                vhost_user_path = given
                continue
            if equals and name == "-fd":
                self.vmm_fd = given
                continue
            if option == "-print-capabilities":
                self.print_capabilities = True
                continue
            if option in TAKES_NEXT:
                value = next(remaining, None)
                if value is None:
                    raise UsageError(f"{word}: requires an argument", way_out(option) or HELP)
                if option == "-device":
                    self.devices.append(value)
                elif option == "-chardev":
                    self.chardevs.append(value)
                elif option == "-object":
                    self.objects.append(value)
                elif option == "-name":
                    self.name = machine_name(value)
                elif option == "-allow-path":
                    self.allowed_paths.append(value)
                elif option == "-log-format":
                    if value not in LOG_FORMATS:
                        raise UsageError(f"{word} {value}: one of {', '.join(LOG_FORMATS)}", HELP)
                    self.log_format = value
                elif option == "-D":
                    self.log_file = value
                elif option in MONITOR_OPTIONS:
                    self.monitors.append((option, value))
                else:
                    self.ready_fd = value
            elif option == "-exit-with-parent":
                self.exit_with_parent = True
            elif option == "-trust-vmm":
                self.trust_vmm = True
            elif option in ("-sandbox=on", "-sandbox=off"):
                self.sandbox = option == "-sandbox=on"
            elif option in ("-v", "-verbose"):
                self.verbosity += 1
            elif option in ("-h", "-help"):
                self.help = True
            else:
                raise UsageError(f"{word}: invalid option", _meant(word) or HELP)
        if vhost_user_path is not None and self.vmm_fd is not None:
            raise UsageError("--socket-path and --fd exclude each other", "leave out one of the two")
        if vhost_user_path is not None or self.vmm_fd is not None:
            socket = "" if vhost_user_path is None else ",socket=" + vhost_user_path.replace(",", ",,")
            self.devices.insert(0, f"{VHOST_USER},id=vhost-user{socket}")


def _meant(word: str) -> str:
    option = "-" + word.lstrip("-")
    if option.partition("=")[0] in (*TAKES_NEXT, "-verbose", "-trust-vmm"):
        name, _, value = word.partition("=")
        return f"write '{name} {value}'" if option.partition("=")[0] in TAKES_NEXT else f"write '{name}' alone"
    if not word.startswith("-"):
        return f"did you mean '-device {word}'?" if word.partition(",")[0] in (*DRIVERS, *ALIASES) else ""
    return did_you_mean(option, KNOWN)


def refused(option: str, text: str, error: ConfigError) -> UsageError:
    """The error that names the option, and what to try."""
    from virtserial.options.way_out import refusal

    named = refusal(option, text, error)
    return UsageError(str(named), named.hint)


def way_out(option: str, text: str = "") -> str:
    """See virtserial.options.way_out."""
    from virtserial.options import way_out as advice

    return advice.way_out(option, text) if option not in PROCESS_OPTIONS else ""


def build_objects(options: Options) -> dict[str, TlsCredentials]:
    """Return the objects of -object, by id.

    Raises:
        UsageError: in QEMU's words, with the option.
    """
    from virtserial.options.object_options import parse_object

    objects: dict[str, TlsCredentials] = {}
    for text in options.objects:
        try:
            credentials = parse_object(text, objects)
        except ConfigError as error:
            raise refused("-object", text, error) from None
        objects[credentials.id] = credentials
    return objects


def build(options: Options, objects: dict[str, TlsCredentials]) -> tuple[Machine, dict[str, Chardev]]:
    """Return the machine and the chardevs of the options; nothing is opened.

    Raises:
        UsageError: in QEMU's words, with the option.
    """
    from virtserial.daemon.keeper.run_directory import run_directory
    from virtserial.machine.build import plug
    from virtserial.machine.model import Machine
    from virtserial.options.chardev_options import parse_chardev
    from virtserial.options.device_options import parse_device

    machine = Machine()
    chardevs: dict[str, Chardev] = {}
    text = ""
    try:
        option = "-chardev"
        for text in options.chardevs:
            chardev = parse_chardev(text, chardevs, objects)
            chardevs[chardev.id] = chardev
        option = "-device"
        for text in options.devices:
            plug(machine, parse_device(text), chardevs, run_directory())
    except ConfigError as error:
        raise refused(option, text, error) from None
    return machine, chardevs


def build_monitors(options: Options, machine: Machine, chardevs: dict[str, Chardev]) -> list[MonitorOptions]:
    """Return the monitors of the options, and add the chardevs that they imply to `chardevs`.

    Raises:
        UsageError: in QEMU's words, with the option.
    """
    if not options.monitors:
        return []
    from virtserial.options.chardev_options import parse_chardev
    from virtserial.options.monitor_options import parse_mon, parse_monitor

    monitors: list[MonitorOptions] = []
    try:
        for option, text in options.monitors:
            needed = None
            if option == "-mon":
                monitor = parse_mon(text)
            else:
                mode = "readline" if option == "-monitor" else "control"
                parsed = parse_monitor(text, len(monitors), mode, pretty=option == "-qmp-pretty")
                if parsed is None:
                    continue
                monitor, needed = parsed
            if needed is not None:
                chardevs[monitor.chardev] = parse_chardev(needed, chardevs)
            if monitor.chardev not in chardevs:
                hint = did_you_mean(monitor.chardev, chardevs) or f"it needs a -chardev KIND,id={monitor.chardev},..."
                raise ConfigError(f'chardev "{monitor.chardev}" not found', hint)
            chardev = chardevs[monitor.chardev]
            taken = any(other.chardev == chardev.id for other in monitors) or machine.user_of(chardev.id) is not None
            if chardev.hub or (taken and not chardev.mux):
                hint = "give it a -chardev of its own, or share this one with mux=on"
                raise ConfigError(f"chardev '{monitor.chardev}' is already in use", hint)
            monitors.append(monitor)
    except ConfigError as error:
        raise refused(option, text, error) from None
    return monitors
