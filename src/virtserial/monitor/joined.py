"""The monitors of a QEMU whose virtio-serial controllers are ours: clients see one QEMU.

Each monitor has a connection of its own to QEMU, so no client waits for another's command, and each gets QEMU's events
in QEMU's order with QEMU's timestamps.  One more connection is the lifeline: when it ends, QEMU has ended.

Who answers what (joined_commands.py decides, once for both; joined_qmp.py and joined_hmp.py only read and print):

| command | here | QEMU |
|---|---|---|
| `device_add` of a controller | the device | the vfio-user-pci device at its socket |
| `device_add`, `device_del` of a port | if its bus is ours | else |
| `device_del` of a controller | once QEMU has deleted its half | first |
| `chardev-add` | kinds and options that we have | else, and ids that QEMU has |
| `chardev-change`, `-remove`, `-send-break`, `ringbuf-*` | chardevs that are ours | else |
| `object-add`, `netdev_add`, any other `device_add` | hands over chardevs, makes memory shareable | runs it |
| `object-add tls-creds-x509` | reads the files too | runs it |
| `query-chardev`, `qom-list`, `qom-get`, `info qtree` | our part | its part, without what is between it and us |
| `getfd`, `closefd` | keeps them | gets those that a command for it names |
| `add-fd`, `remove-fd` | keeps a copy | numbers them |
| `migrate`, `savevm` and their kin | the controllers' state (migration/) | runs it, what is around it, and events |
| `cont`, `stop`, `query-status` | while a machine arrives | else |
| `migrate-recover`, `xen-*-devices-state` | refuses while a controller is ours | else |
| `x-virtserial-*` | runs it | |
| all others, `quit` too | | runs it |
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from virtserial.migration.start import StartOfMachine
from virtserial.monitor import joined_hmp
from virtserial.monitor.events import Events
from virtserial.monitor.joined_machine import JoinedMachine
from virtserial.monitor.joined_qmp import run_request
from virtserial.monitor.line import MonitorLine
from virtserial.monitor.operations import Operations
from virtserial.monitor.qemu_connection import QemuConnection
from virtserial.monitor.qmp import QmpError
from virtserial.monitor.qmp_client import Ask
from virtserial.monitor.server import attach, flush_and_close
from virtserial.monitor.steps import run_steps

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from virtserial.daemon.keeper.keeper import Keeper
    from virtserial.machine.model import Port
    from virtserial.migration.migration import Migration
    from virtserial.monitor.descriptors import Client
    from virtserial.monitor.qmp import Request
    from virtserial.options.monitor_options import MonitorOptions


class JoinedMonitors:
    """All monitors of a machine that QEMU and we share.  Create it before the keeper starts.

    Args:
        keeper: our half; its loop stops when QEMU has ended.
        monitors: the keeper's chardevs that they use, and whether they speak QMP or HMP.
        streams: our ends of the connections to QEMU, by name: "control", "monitor/N" for the N-th monitor,
            "front/CHARDEV/K" for the K-th of QEMU's own users of a chardev that is ours.  Owned from here on.
        chardev_texts: by id, the -chardev arguments of the chardevs that are ours at the start.
        share_object: changes the properties of a memory back end so that we can map it.
        run_directory: folder for the sockets of controllers that are added at run time.
        newest_is_qemus: the last virtio-serial controller so far is QEMU's.
        start: what QEMU's command line says of a guest that arrives; None: nothing.
    """

    def __init__(
        self,
        keeper: Keeper,
        monitors: Sequence[MonitorOptions],
        streams: Mapping[str, socket.socket],
        *,
        chardev_texts: Mapping[str, str],
        share_object: Callable[[Mapping[str, object]], Mapping[str, object]],
        run_directory: str,
        newest_is_qemus: bool = False,
        start: StartOfMachine | None = None,
    ) -> None:
        self._keeper = keeper
        self.events = Events(keeper.loop, self._send_event)
        self.operations = Operations(keeper, self.events, keeper.loop.stop)
        self.machine = JoinedMachine(
            self.operations, chardev_texts, share_object, run_directory, newest_is_qemus=newest_is_qemus
        )
        self._lines: list[MonitorLine] = []
        self._backends: list[QemuBackend] = []
        for index, options in enumerate(monitors):
            backend = QemuBackend(keeper, self.machine, streams[f"monitor/{index}"])
            line = MonitorLine(keeper.loop, backend, options)
            backend.line = line
            self._backends.append(backend)
            self._lines.append(line)
            attach(keeper, line, options, len(self._lines))
        for name, stream in streams.items():
            kind, _, user = name.partition("/")
            if kind == "front":
                chardev, _, number = user.rpartition("/")
                keeper.fronts.add(keeper.chardevs[chardev], f"qemu{number}", stream)
        for chardev_of in keeper.chardevs.values():
            self.machine.chardevs.was_added(chardev_of)
        self._control = QemuConnection(
            keeper.loop, streams["control"], self.machine.control_event, self._control_ready, self._qemu_ended
        )
        self._start = start or StartOfMachine()
        self._run_directory = run_directory
        self.machine.make_migration = self._make_migration
        if self._start.is_incoming:
            self.machine.migration.open()
        if self._start.take_hosts_from is not None:
            from virtserial.daemon.keeper.host_hand_over import HostHandOver

            HostHandOver(keeper).expect()
        keeper.guest_open_listener = self._guest_open_changed
        keeper.back_ends.program = "QEMU"
        keeper.quit = self._quit_qemu

    def _make_migration(self) -> Migration:
        from virtserial.daemon.keeper.host_hand_over import HostHandOver
        from virtserial.migration.devices import Devices
        from virtserial.migration.machine import MovingMachine
        from virtserial.migration.migration import Migration

        devices = Devices(self._keeper)
        pid = self._start.qemu_pid
        moving = MovingMachine(self._keeper.loop, devices, self._control.ask, self._run_directory, pid)
        return Migration(moving, self._start, HostHandOver(self._keeper), self._run_directory)

    def _control_ready(self) -> None:
        if self._start.is_incoming:
            self.machine.migration.begin()

    def _quit_qemu(self) -> None:
        """Somebody typed Ctrl-a x."""
        self._control.ask(Ask("quit", {}), lambda _: None)

    def _guest_open_changed(self, port: Port) -> None:
        if port.id is not None:
            self.events.port_changed(port.id, port.guest_open)

    def _send_event(self, name: str, data: Mapping[str, object] | None) -> None:
        for line in self._lines:
            line.send_event(name, data)

    def _qemu_ended(self) -> None:
        """QEMU has ended: pass on its last output, then stop."""
        for backend in self._backends:
            backend.connection.read_all()
        self._keeper.loop.stop()

    def close(self) -> None:
        """Send clients their last output and close."""
        flush_and_close(self._keeper, self._lines)
        for backend in self._backends:
            backend.connection.close()
        self._control.close()
        self.machine.close()
        self.operations.descriptor_sets.close()


class QemuBackend:
    """Runs the requests of one monitor's clients, here or through its connection to QEMU (conversation.Backend)."""

    def __init__(self, keeper: Keeper, machine: JoinedMachine, stream: socket.socket) -> None:
        self.line: MonitorLine | None = None
        self.connection = QemuConnection(keeper.loop, stream, self._event, self._qemu_ready, lambda: None)
        self._machine = machine
        self._waiting: list[Callable[[], None]] = []
        self._is_ready = False
        self._cpu = joined_hmp.Cpu()
        self._commands: list[str] = []
        self._items: list[str] = []

    def _event(self, event: dict[str, object]) -> None:
        # The first connection to get it acts, so that a client that gets the event finds it done.
        self._machine.qemu_event(event)
        if self.line is not None and self._machine.shows(event):
            self.line.pass_event(event)

    def _qemu_ready(self) -> None:
        self._is_ready = True
        for text, names in (("help", self._commands), ("help info", self._items)):
            self.connection.ask(Ask("human-monitor-command", {"command-line": text}), partial(self._note_names, names))
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    @staticmethod
    def _note_names(names: list[str], printed: object) -> None:
        if not isinstance(printed, QmpError):
            names += joined_hmp.names_in_help(str(printed))

    # monitor.conversation.Backend

    def when_ready(self, callback: Callable[[], None]) -> None:
        if self._is_ready:
            callback()
        else:
            self._waiting.append(callback)

    def greeting(self) -> Mapping[str, object]:
        assert self.connection.session.greeting is not None
        return self.connection.session.greeting

    def run(self, client: Client, request: Request, answer: Callable[[object], None]) -> None:
        run_steps(run_request(self._machine, client, request), self.connection.ask, answer)

    def run_line(self, client: Client, line: str, answer: Callable[[str], None]) -> None:
        def done(result: object) -> None:
            answer(f"Error: {result}\n" if isinstance(result, QmpError) else str(result))

        run_steps(joined_hmp.run_line(self._machine, client, line, self._cpu), self.connection.ask, done)

    def candidates(self, text: str) -> tuple[Sequence[str], int]:
        return joined_hmp.candidates(self._machine, self._commands, self._items, text)

    def client_left(self) -> None:
        self._cpu = joined_hmp.Cpu()
