"""`virtserial restart`: have a running process replace its worker by one of the code that is installed now."""

from __future__ import annotations

import time

from virtserial.cli.monitor_client import MonitorClient
from virtserial.errors import ConfigError

USAGE = """usage: virtserial restart --monitor SOCKET

  --monitor SOCKET      the QMP socket of the process (its -qmp unix:SOCKET,server=on,wait=off)

The process that moves the bytes is replaced by one of the code that is installed now.  Guests, VMMs and host programs
stay connected, and no byte is lost or doubled; TLS, websocket and telnet connections have to be made again.  If the new
code cannot start, the old process goes on.  The other process, which holds the connections, keeps its code.
"""

TIMEOUT = 30.0
LOOK_AGAIN = 0.02


def run(words: list[str]) -> int:
    """Restart, and wait until the new worker serves.

    Raises:
        ConfigError: it cannot be done; the old worker goes on.
    """
    if not words or words[0] in ("-h", "--help", "-help"):
        print(USAGE, end="")
        return 0 if words else 2
    if len(words) != 2 or words[0] != "--monitor":
        raise ConfigError(f"{words[0]}: invalid option; `virtserial restart --help` tells more")
    with MonitorClient(words[1]) as monitor:
        before = _query(monitor)
        monitor.execute("x-virtserial-restart", {})
        deadline = time.monotonic() + TIMEOUT
        while (now := _query(monitor))["changing"]:
            if time.monotonic() > deadline:
                raise ConfigError(f"the new worker does not serve after {TIMEOUT:g} s")
            time.sleep(LOOK_AGAIN)
    if now["refusal"]:
        raise ConfigError(str(now["refusal"]))
    print(f"worker {before['worker-pid']} is replaced by {now['worker-pid']}")
    return 0


def _query(monitor: MonitorClient) -> dict[str, object]:
    answer = monitor.execute("x-virtserial-query", {})
    assert isinstance(answer, dict)
    return answer
