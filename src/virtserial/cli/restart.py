"""`virtserial restart`: upgrade a running device process in place."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from virtserial.client.qmp import QmpClient
from virtserial.errors import ConfigError, PeerError, VirtserialError
from virtserial.guest.words import Parser

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 60.0
LOOK_AGAIN = 0.02


def run(words: list[str]) -> int:
    """Restart, and wait until the new code serves.

    Raises:
        ConfigError: that failed; the old code stays.
    """
    parser = Parser(
        "virtserial restart",
        description="Upgrade both processes of a device to the code that is installed now. Guests, VMMs, host programs "
        "and clients of the monitor stay connected, and no byte is lost or doubled; TLS, websocket and telnet "
        "connections have to be made again. If the new code cannot take over, the old one stays. Under "
        "virtserial-qemu it is always --worker.",
    )
    parser.add_argument("vm", metavar="VM", nargs="?", help="a virtual machine as `virtserial ls` lists it")
    parser.add_argument(
        "--monitor", metavar="SOCKET",
        help="in place of VM: the QMP socket of the process (its -qmp unix:SOCKET,server=on,wait=off)",
    )  # fmt: skip
    parser.add_argument(
        "--worker", action="store_true",
        help="only the process that moves the bytes; the one that holds the connections keeps its code",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but what failed")
    options = parser.parse_args(words)
    if (options.monitor is None) == (options.vm is None):
        parser.error("say VM, or --monitor SOCKET")
    connect, worker_only = partial(_connect, options.monitor, options.vm), options.worker
    with connect() as monitor:
        before = _when_settled(monitor)
        whole = bool(before.get("keeper-can-restart")) and not worker_only
        monitor.execute("x-virtserial-restart", {"keeper": True} if whole else {})
        try:
            now = _when_settled(monitor)
        except PeerError:
            # A keeper keeps its monitors' connections, but not those by which it is found by name.
            now = _when_back(connect)
    if now["refusal"]:
        raise ConfigError(str(now["refusal"]))
    if options.quiet:
        return 0
    if whole:
        print(f"keeper {now['keeper-pid']} runs the code that is installed now")
    elif not worker_only:
        print(f"keeper {now['keeper-pid']} keeps its code until the virtual machine starts anew")
    print(f"worker {before['worker-pid']} is replaced by {now['worker-pid']}")
    return 0


def _connect(path: str | None, name: str | None) -> QmpClient:
    if path is not None:
        return QmpClient(path)
    from virtserial.client.registry import find_vm

    return find_vm(name or "").connect()


def _when_back(connect: Callable[[], QmpClient]) -> dict[str, object]:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            with connect() as monitor:
                return _when_settled(monitor)
        except VirtserialError:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_AGAIN)


def _when_settled(monitor: QmpClient) -> dict[str, object]:
    """What the process says of itself, once none of its two is being replaced, or has just been started."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        answer = monitor.execute("x-virtserial-query", answer_time=TIMEOUT)
        assert isinstance(answer, dict)
        if not answer["changing"]:
            return answer
        time.sleep(LOOK_AGAIN)
    raise ConfigError(f"the device process is still being changed after {TIMEOUT:g} s")
