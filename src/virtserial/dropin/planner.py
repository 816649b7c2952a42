"""From a QEMU command line to a plan: what is ours, and what QEMU gets.

Nothing is opened or started here, except that files are read (-readconfig, certificates).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.chardev.stdio import StdioChardev
from virtserial.dropin import accelerator, chardevs, devices, memory, monitors
from virtserial.dropin.command_line import Option, arguments_of, split, words_of
from virtserial.dropin.drivers import resolve
from virtserial.dropin.plan import Plan
from virtserial.dropin.readconfig import read_config_files
from virtserial.dropin.references import chardevs_used, redirect
from virtserial.errors import ConfigError
from virtserial.machine.build import plug
from virtserial.machine.model import Controller
from virtserial.migration.start import StartOfMachine, object_properties
from virtserial.options import keyval
from virtserial.options.device_options import DRIVERS, NOT_QEMU_S
from virtserial.options.interfaces import EXPRESS_PORTS, choose_legacy
from virtserial.options.machine_name import machine_name
from virtserial.options.way_out import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from virtserial.dropin.chardevs import ChardevWords
    from virtserial.dropin.devices import Device
    from virtserial.dropin.monitors import MonitorWords

INTERNAL = "virtserial-"
"""Prefix of the ids of chardevs between QEMU and us."""
CONTROL = "control"
ARRIVALS = ("incoming", "loadvm")
"""Options by which a guest does not boot, but goes on."""
ANSWER_AND_EXIT = ("h", "help", "version", "dump-vmstate")
HELP = ("help", "?")
MORE_CHARDEVS = "virtserial adds the kind handler (Python), and for sockets clients=, backlog=, slow= and watch="
ASK_FOR_HELP = (
    *("device", "machine", "M", "cpu", "accel", "chardev", "object", "netdev", "nic", "net", "audio", "audiodev"),
    *("d", "trace", "L", "display", "vga", "smp", "tpmdev", "spice", "global", "plugin"),
)
"""Options whose argument can ask for help."""


def make_plan(
    words: Sequence[str],
    *,
    run_directory: str,
    connect: Callable[[str], int],
    architecture: str = "x86_64",
) -> Plan:
    """Plan the start of a virtual machine.

    Args:
        words: QEMU's arguments, without the program.
        run_directory: folder for our controllers' sockets.
        connect: called once for each stream between QEMU and us with its name ("control", "monitor/N",
            "front/CHARDEV/K"); returns the number of QEMU's descriptor.
        architecture: the guest's, as QEMU names it.

    Raises:
        ConfigError: QEMU would refuse it, or virtserial cannot do it; the text names the option.
    """
    given = split(words)
    if given is None:
        return Plan(list(words), "the last option lacks its argument")
    if (reason := _why_untouched(given)) is not None:
        return Plan(list(words), reason, remarks=list(_additions(given)))
    _check_json(given)
    options = read_config_files(given)
    if not all(os.path.isfile(path) for _, path in arguments_of(given, "readconfig")):
        words = words_of(options)  # A pipe can be read only once.
    planner = _Planner(options, run_directory, connect, architecture)
    if (reason := planner.decide()) is not None:
        return Plan(list(words), reason, remarks=planner.plan.remarks)
    planner.carry_out()
    return planner.plan


def _why_untouched(options: Sequence[Option]) -> str | None:
    for option in options:
        if option.name in ANSWER_AND_EXIT:
            return f"-{option.name} answers and exits"
    for option, value in arguments_of(options, *ASK_FOR_HELP):
        if not value.startswith("{") and any(word in HELP for word in value.split(",")):
            return f"{option.text} asks for help"
    if memory.read_machine(options, "").type == "none":
        return "-machine none has no devices"
    return None


def _additions(options: Sequence[Option]) -> Iterator[str]:
    """What QEMU's answer to `help` lacks."""
    for option, value in arguments_of(options, "device", "chardev"):
        first, *rest = value.split(",")
        if option.name == "chardev" and first in HELP:
            yield f"{option.text}: {MORE_CHARDEVS}"
        elif (driver := resolve(first)) in DRIVERS and rest and rest[-1] in HELP:
            added = ", ".join(f"{name}=" for name in DRIVERS[driver] if name in NOT_QEMU_S)
            if added:
                yield f"{option.text}: virtserial adds {added}; `virtserial serve -device {first},help` tells more"


def _check_json(options: Sequence[Option]) -> None:
    for option, value in arguments_of(options, "device", "object", "chardev"):
        try:
            keyval.parse_options(value, "")
        except ConfigError as error:
            raise refusal(f"-{option.name}", value, error) from None


class _Planner:
    def __init__(
        self, options: list[Option], run_directory: str, connect: Callable[[str], int], architecture: str
    ) -> None:
        self.plan = Plan([])
        self._options = options
        self._run_directory = run_directory
        self._connect = connect
        self._architecture = architecture
        self._devices: list[Device] = []
        self._others: dict[str, str] = {}
        self._controllers: list[Device] = []
        self._monitors: list[MonitorWords] = []
        self._chardevs: dict[str, ChardevWords] = {}
        self._ours: set[str] = set()
        self._maker = chardevs.Maker(options)

    # Who owns what

    def decide(self) -> str | None:
        """Decide who owns what; return why QEMU gets everything unchanged, or None."""
        self._options += monitors.default_options(self._options)
        self._devices, self._others = devices.collect(self._options, self._architecture)
        devices.apply_set(self._options, self._devices)
        devices.apply_global(self._options, self._devices)
        self._refuse_ids_given_twice()
        if any(not device.is_port for device in self._devices):
            self._controllers = devices.place_ports(self._devices)
        asked = monitors.collect(self._options)
        brought_along = [(words.option, words.chardev) for words in asked if words.chardev is not None]
        self._chardevs = chardevs.collect(self._options, brought_along)
        self._maker.make_all(self._chardevs)
        for controller in self._controllers:
            controller.kept = self._why_kept(controller)
        self._monitors = [words for words in asked if self._can_be_ours(words)]
        ours = [controller for controller in self._controllers if controller.kept is None]
        self._remark_what_stays(asked)
        if not ours and not self._monitors:
            return "no virtio-serial controller and no monitor for virtserial"
        for option in self._options:
            if option.name in ARRIVALS:
                if not ours:
                    return f"-{option.name} without a virtio-serial controller for virtserial"
                autostart = all(other.name != "S" for other in self._options)
                by_stream = self.plan.start.by_stream or option.name == "incoming"
                self.plan.start = StartOfMachine(is_incoming=True, by_stream=by_stream, autostart=autostart)
        self._note_users(ours)
        self._ours = {name for name, words in self._chardevs.items() if chardevs.is_ours(words)}
        return None

    def _refuse_ids_given_twice(self) -> None:
        seen = set(self._others)
        for device in self._devices:
            if device.id is not None and device.id in seen:
                hint = "give each device an id= of its own, or none"
                raise device.error(ConfigError(f"Duplicate device ID '{device.id}'", hint))
            if device.id is not None:
                seen.add(device.id)

    def _why_kept(self, controller: Device) -> str | None:
        if (reason := devices.why_qemu_s(controller)) is not None:
            return reason
        for port in controller.ports:
            if (name := port.chardev) is None:
                continue
            words = self._chardevs.get(name)
            if words is None:
                hint = keyval.did_you_mean(name, self._chardevs) or f"it needs a -chardev KIND,id={name},..."
                raise port.error(ConfigError(f"Property '{port.driver}.chardev' can't find value '{name}'", hint))
            if words.chardev is None and words.is_qemu_s:
                return f"only QEMU has a chardev of kind {words.kind} ('{name}', which a port uses)"
        return None

    def _can_be_ours(self, words: MonitorWords) -> bool:
        if words.monitor is None or words.monitor.chardev not in self._chardevs:
            return False
        chardev = self._chardevs[words.monitor.chardev]
        return chardev.chardev is not None or not chardev.is_qemu_s

    def _remark_what_stays(self, asked: list[MonitorWords]) -> None:
        for controller in self._controllers:
            if controller.kept is not None:
                self.plan.remarks.append(f"{controller.option.text}: stays QEMU's with its ports: {controller.kept}")
        for words in asked:
            if words not in self._monitors and not words.option.is_default:
                self.plan.remarks.append(f"{words.option.text}: stays QEMU's and does not show virtserial's ports")

    def _note_users(self, ours: list[Device]) -> None:
        own = {port.option: port.chardev for controller in ours for port in controller.ports}
        own |= {words.option: words.monitor.chardev for words in self._monitors if words.monitor is not None}
        for option, name in own.items():
            if name is not None and name in self._chardevs:
                self._chardevs[name].users.append(option)
        settings = [option for controller in ours for port in controller.ports for option in port.settings]
        for option in self._options:
            if option not in own and option not in settings:
                for name in chardevs_used(option):
                    if name in self._chardevs:
                        self._chardevs[name].qemu_users.append(option)
        for words in self._monitors:
            if words.is_shared and words.monitor is not None:
                self._chardevs[words.monitor.chardev].qemu_users.insert(0, words.option)

    # The plan

    def carry_out(self) -> None:
        """Fill the plan, and change QEMU's options."""
        plan = self.plan
        plan.newest_is_qemus = bool(self._controllers) and self._controllers[-1].kept is not None
        for _, text in arguments_of(self._options, "name"):
            plan.name = machine_name(text) or plan.name
        plan.daemonize = any(option.name == "daemonize" for option in self._options)
        plan.descriptor_sets = self._maker.descriptor_sets
        plan.objects = self._maker.objects
        for name, words in self._chardevs.items():
            if name in self._ours:
                self._take_chardev(words)
        self._redirect_to_fronts()
        for number, monitor in enumerate(self._monitors):
            self._take_monitor(number, monitor)
        for device in self._devices:
            self._take_device(device)
        has_controller = bool(plan.machine.controllers)
        extra = memory.make_shareable(self._options, self._architecture, plan.remarks, has_controller=has_controller)
        arrival = self._arrival_words() if plan.start.is_incoming else []
        plan.words = [*words_of(self._options), *extra, *arrival, *self._monitor_words(CONTROL)]

    def _arrival_words(self) -> list[str]:
        """QEMU holds a guest that arrives, and hands us our state out of the stream (migration/destination.py)."""
        state = keyval.to_text(list(object_properties(self._run_directory).items())[1:])
        return ["-object", f"dbus-vmstate,{state}", *(["-S"] if self.plan.start.autostart else [])]

    def _take_chardev(self, words: ChardevWords) -> None:
        plan = self.plan
        chardev = words.chardev
        assert chardev is not None
        plan.chardevs[words.id] = chardev
        plan.chardev_texts[words.id] = words.text
        plan.decisions.append(f"chardev {words.id} ({chardev.kind}): {self._use_of(words)}")
        values = keyval.parse_options(words.text, "backend")
        if chardev.kind == "socket" and str(values.get("fd", "")).isdecimal():
            plan.descriptors.add(int(str(values["fd"])))
        for option in words.settings:
            option.replace()
        emitted: list[str] = []
        backend = chardev.backend
        if isinstance(backend, StdioChardev):
            backend.sets_terminal_modes = False
            # QEMU still sets and restores the terminal's modes; only we read and write.
            signal = "" if keyval.to_bool("signal", values.get("signal", "on")) else ",signal=off"
            emitted += ["-chardev", f"stdio,id={INTERNAL}terminal{signal}"]
        for index in range(len(words.qemu_users)):
            emitted += self._socket_words(f"front/{words.id}/{index}")
        if words.option.name in monitors.SHARED_LINES:
            emitted += [f"-{words.option.name}", f"chardev:{_internal_id(f'front/{words.id}/0')}"]
        words.option.replace(*emitted)

    @staticmethod
    def _use_of(words: ChardevWords) -> str:
        users = [f"virtserial's {option.text}" for option in words.users]
        users += [f"QEMU's {option.text}" for option in words.qemu_users]
        return ", ".join(users) or "nobody yet"

    def _redirect_to_fronts(self) -> None:
        """Connect each of QEMU's users of our chardevs to us by a stream, in the order they were noted."""
        taken = dict.fromkeys(self._ours, 0)
        for shared in self._monitors:
            if shared.is_shared and shared.monitor is not None:
                taken[shared.monitor.chardev] += 1

        def front(name: str) -> str:
            if name not in taken:
                return name
            taken[name] += 1
            return _internal_id(f"front/{name}/{taken[name] - 1}")

        for words in self._chardevs.values():
            if words.id in self._ours:
                for option in dict.fromkeys(words.qemu_users):
                    if option is not words.option:
                        redirect(option, front)

    def _take_monitor(self, number: int, words: MonitorWords) -> None:
        assert words.monitor is not None
        self.plan.monitors.append(words.monitor)
        if words.chardev is None:
            words.option.replace()
        words.option.emitted += self._monitor_words(f"monitor/{number}")

    def _monitor_words(self, name: str) -> list[str]:
        # QEMU 11.1 warns of -mon, and older ones do not have -object monitor-qmp.
        return [*self._socket_words(name), "-qmp", f"chardev:{_internal_id(name)}"]

    def _socket_words(self, name: str) -> list[str]:
        return ["-chardev", f"socket,id={_internal_id(name)},fd={self._connect(name)}"]

    def _take_device(self, device: Device) -> None:
        controller = device.controller
        if controller is None or controller.kept is not None:
            if device is controller and device.id is None:
                self.plan.machine.name_bus(None)  # QEMU numbers its buses and ours together.
            return
        bus = controller.bus if device.is_port else None
        try:
            options = device.options(bus)
            if options.is_controller:
                accelerator.choose_unplug(options, self._options, self._architecture)
                on_express_port = self._others.get(options.bus or "") in EXPRESS_PORTS
                choose_legacy(options, on_express_port=on_express_port, architecture=self._architecture)
            plugged = plug(self.plan.machine, options, self.plan.chardevs, self._run_directory)
        except ConfigError as error:
            raise device.error(error) from None
        for option in device.settings:
            option.replace()
        if isinstance(plugged, Controller):
            self._place(device, ["-device", device.qemu_argument(os.path.abspath(plugged.socket))])
            self.plan.decisions.append(f"controller {plugged.name}, bus {plugged.bus}: at {plugged.socket}")
        else:
            device.option.replace()
            self.plan.decisions.append(f"port {plugged.number} of {plugged.controller.name}: {device.option.text}")

    def _place(self, controller: Device, words: list[str]) -> None:
        """Put QEMU's half of a controller, which is JSON, in its place, but a key=value one before all other JSON."""
        devices = [option for option, value in arguments_of(self._options, "device") if value.startswith("{")]
        first = next(iter(devices), None)
        position = self._options.index(controller.option)
        if controller.typed or first is None or self._options.index(first) > position:
            controller.option.replace(*words)
            return
        controller.option.replace()
        earlier = self._options.index(first)
        self._options.insert(earlier, Option("", None, words))


def _internal_id(name: str) -> str:
    return INTERNAL + name.replace("/", "-")
