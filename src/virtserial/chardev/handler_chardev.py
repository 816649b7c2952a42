"""chardev handler: a port served by Python code (virtserial.handler says how it is written).

The keeper never runs the code.  It reads the syntax tree of the source, to tell a coroutine from a class and to refuse
a wrong name at startup.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING

from virtserial.channel.connections import HandlerCode, HandlerConnection, SocketConnection
from virtserial.chardev.base import Chardev
from virtserial.chardev.preparation import Preparation
from virtserial.chardev.socket_address import prepare_stream
from virtserial.errors import ConfigError
from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    import ast
    from collections.abc import Mapping, Sequence
    from typing import Any

    from virtserial.chardev.base import ConnectionSink, Put, Take
    from virtserial.loop import EventLoop, Timer

END_SECONDS = 2.0
"""SIGKILL comes so long after SIGTERM."""
RESTARTS_AT_ONCE, RESTART_SECONDS = 8, 0.5
"""A guest can open the port at any rate: so many starts at once, then one per so many seconds."""


class HandlerChardev(Chardev):
    """Runs a PortHandler subclass in the worker, and a coroutine in a process of its own, over a socket pair.

    A handler that returned or failed is a disconnected host; it starts again when the guest next opens the port.
    """

    kind = "handler"

    def __init__(self, chardev_id: str, *, class_name: str | None = None, path: str | None = None) -> None:
        super().__init__(chardev_id)
        self.module, _, self.attribute = (class_name or "").rpartition(":")
        self.path = os.path.abspath(path) if path else ""
        self._loop: EventLoop | None = None
        self._sink: ConnectionSink | None = None
        self._is_coroutine = False
        self._pid = 0
        self._process_fd = -1
        self._running = False
        self._paid_until = 0.0
        self._restart: Timer | None = None
        self._begins_next = False

    @property
    def filename(self) -> str:
        return f"handler:{self.path or self.module}:{self.attribute}"

    def paths(self) -> Sequence[str]:
        return [self.path or _find_module(self.module)]

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        if not self.path and not (self.module and self.attribute):
            raise ConfigError("chardev: handler: 'class' must be package.module:Name, or 'path' be given")
        self._is_coroutine = self._look_at_the_code()
        self._loop, self._sink = loop, sink
        self._begin()

    def preparations(self) -> Sequence[Preparation]:
        if self._is_coroutine:
            return ()
        return (Preparation(f"chardev '{self.id}' ({self.filename})", self._code()),)

    def guest_opened(self) -> None:
        if self._loop is None or self._running or self._restart is not None:
            return
        now = self._loop.now()
        self._paid_until = max(self._paid_until, now) + RESTART_SECONDS
        due = self._paid_until - RESTARTS_AT_ONCE * RESTART_SECONDS
        if now < due:
            self._restart = self._loop.call_at(due, self._begin_again)
        else:
            self._begin_again()

    def _begin_again(self) -> None:
        self._restart = None
        if self._loop is None or self._pid == 0:
            self._begin()
            return
        # Its connection has ended, but the process has not: start the next one when it has.
        self._begins_next = True
        os.kill(self._pid, signal.SIGTERM)
        self._restart = self._loop.call_later(END_SECONDS, self._kill)

    def _kill(self) -> None:
        self._restart = None
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)

    def connection_ended(self) -> None:
        self._running = False

    def close(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        self._begins_next = False
        self._end_process()
        self._loop = None
        self._running = False

    def hand_over(self, put: Put) -> dict[str, object]:
        return {
            "attribute": self.attribute,
            "coroutine": self._is_coroutine,
            "running": self._running,
            "pid": self._pid,
        }

    def take_over(self, loop: EventLoop, sink: ConnectionSink, saved: Mapping[str, Any], take: Take) -> None:
        self._loop, self._sink = loop, sink
        self.attribute, self._is_coroutine = saved["attribute"], saved["coroutine"]
        self._running = saved["running"]
        if saved["pid"] and _is_child(saved["pid"]):
            self._watch_process(saved["pid"])

    def _begin(self) -> None:
        self._running = True
        name = f"chardev '{self.id}' ({self.filename})"
        if self._sink is None:
            return
        if self._is_coroutine:
            self._sink.connection_opened(self, SocketConnection(name), (self._start_process(),))
        else:
            self._sink.connection_opened(self, HandlerConnection(name, self._code(), self.attribute), ())

    def _code(self) -> HandlerCode:
        return HandlerCode(self.module, self.path)

    # The code

    def _look_at_the_code(self) -> bool:
        """Return whether it is a coroutine function; everything else counts as a class.

        Raises:
            ConfigError: no such file, module or name, or not Python.
        """
        import ast

        source = self.path or _find_module(self.module)
        try:
            with open(source, "rb") as file:
                tree = ast.parse(file.read(), source)
        except OSError as error:
            raise ConfigError(f"Could not open '{source}': {error.strerror}") from error
        except (SyntaxError, ValueError) as error:
            raise ConfigError(f"chardev: handler: {source} is not Python: {error}") from error
        names = _names_at_top_level(tree)
        if not self.attribute:
            self.attribute = self._only_handler(names, source)
        if self.attribute not in names:
            raise ConfigError(f"chardev: handler: {source} has no '{self.attribute}'")
        return isinstance(names[self.attribute], ast.AsyncFunctionDef)

    @staticmethod
    def _only_handler(names: dict[str, ast.stmt], source: str) -> str:
        import ast

        if "serve" in names:
            return "serve"
        found = [
            name
            for name, node in names.items()
            if isinstance(node, ast.ClassDef) and any("PortHandler" in ast.unparse(base) for base in node.bases)
        ]
        if len(found) != 1:
            raise ConfigError(
                f"chardev: handler: {source} has neither 'serve' nor just one PortHandler: say 'class'"
            )
        return found[0]

    # The process

    def _start_process(self) -> int:
        """Start the coroutine's process; returns our end of its socket pair."""
        import subprocess

        ours, theirs = socket.socketpair()
        prepare_stream(ours, nodelay=False)
        prepare_stream(theirs, nodelay=False)
        search_path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "virtserial.host_end.handler_process",
                str(theirs.fileno()),
                self.module,
                self.path,
                self.attribute,
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            process_group=0,  # Ctrl-C goes to the server, which ends its handlers.
            env={**os.environ, "PYTHONPATH": search_path},
        )
        theirs.close()
        self._watch_process(process.pid)
        process.returncode = 0  # waitpid is called by number, by this program or its successor.
        return ours.detach()

    def _watch_process(self, pid: int) -> None:
        self._pid, self._process_fd = pid, os.pidfd_open(pid)
        if self._loop is not None:
            self._loop.watch(self._process_fd, EPOLLIN, self._process_ended)

    def _process_ended(self, _events: int) -> None:
        if not self._pid:
            return
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._forget_process()
        if status and not self._begins_next:
            self.report(f"warning: chardev '{self.id}': the handler's process ended with status {status}")
        if self._begins_next:
            self._begins_next = False
            if self._restart is not None:
                self._restart.cancel()
                self._restart = None
            self._begin()

    def _forget_process(self) -> None:
        if self._loop is not None:
            self._loop.unwatch(self._process_fd)
        os.close(self._process_fd)
        self._pid = 0

    def _end_process(self) -> None:
        """End the process: SIGTERM, and SIGKILL after END_SECONDS."""
        if not self._pid:
            return
        os.kill(self._pid, signal.SIGTERM)
        if not select.select([self._process_fd], [], [], END_SECONDS)[0]:
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._forget_process()


def _is_child(pid: int) -> bool:
    """Whether a process, running or not, is our child."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _find_module(name: str) -> str:
    """The source file of a module, found without importing its packages.

    Raises:
        ConfigError: there is no such module.
    """
    from importlib.machinery import PathFinder

    search: list[str] | None = None
    origin = None
    parts = name.split(".")
    for index in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: index + 1]), search)
        if spec is None:
            raise ConfigError(f"chardev: handler: there is no module '{name}'")
        search = list(spec.submodule_search_locations or [])
        origin = spec.origin
    if origin is None or not origin.endswith(".py"):
        raise ConfigError(f"chardev: handler: module '{name}' has no Python source")
    return origin


def _names_at_top_level(tree: ast.Module) -> dict[str, ast.stmt]:
    """What a module defines, assigns or imports, by name."""
    import ast

    names: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update({(alias.asname or alias.name).split(".")[0]: node for alias in node.names})
        elif isinstance(node, ast.Assign):
            names.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
    return names
