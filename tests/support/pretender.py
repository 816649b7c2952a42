"""An entry in the registry whose process is the test's own, and answers what the test likes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading

from virtserial.monitor.registry import start_time

GREETING = {"QMP": {"version": {"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": ""}, "capabilities": []}}
INVENTORY = {
    "controllers": [{"name": "ser0", "bus": "ser0.0", "socket": "/s", "max-ports": 31, "vmm": True}],
    "ports": [],
    "folder": "/",
    "worker-pid": 1, "changing": False, "restarts": 2, "upgrades": 1, "keeper-restarts": 0,
}  # fmt: skip
PORT = {
    "controller": "ser0", "number": 1, "id": "p1", "name": "org.example", "console": "", "chardev": "c",
    "kind": "socket", "host-end": "unix:/c,server=on", "clients": 1, "max-clients": 1, "watch": "",
    "client-pid": 0, "guest-open": True,
    "to-host": 10, "to-guest": 20, "discarded": 3, "dropped": 4, "doubtful": 5,
}  # fmt: skip


@contextlib.contextmanager
def pretender(registry, answer=None, name="pretender"):
    """Serve what is asked of this process.

    Args:
        answer: what x-virtserial-inventory returns, or bytes that are sent as they are; None: nothing.
    """
    registry.mkdir(mode=0o700, exist_ok=True)
    pid = os.getpid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(registry / f"{pid}.qmp"))
        listener.listen(64)
        path = registry / f"{pid}.json"
        path.write_text(json.dumps({"version": 1, "pid": pid, "start": start_time(pid), "name": name}))
        path.chmod(0o600)
        thread = threading.Thread(target=_serve, args=(listener, answer), daemon=True)
        thread.start()
        try:
            yield
        finally:
            path.unlink()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(60)
            (registry / f"{pid}.qmp").unlink()


def _serve(listener, answer):
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_converse, args=(client, answer), daemon=True).start()


def _converse(client, answer):
    with client, contextlib.suppress(OSError), client.makefile("rwb") as stream:
        stream.write(json.dumps(GREETING).encode() + b"\r\n")
        stream.flush()
        for line in stream:
            request = json.loads(line)
            told = {} if request["execute"] == "qmp_capabilities" else answer
            if isinstance(told, bytes):
                stream.write(told)
            elif told is not None:
                stream.write(json.dumps({"return": told, "id": request.get("id")}).encode() + b"\r\n")
            stream.flush()
