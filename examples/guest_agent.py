"""A guest agent: answers the host's requests, one JSON object a line, and survives the host's coming and going.

    guest# python3 guest_agent.py org.example.agent
    host$  PYTHONPATH=src python3 examples/guest_agent.py unix:/run/vm/agent '{"do": "run", "words": ["uname", "-r"]}'
    {"id": "5f0c6a9e", "ok": true, "status": 0, "output": "6.1.0\\n"}

An answer has the id of its request.  A host that leaves early, or says nothing more (shutdown(SHUT_WR), as with
`echo | socat`: a port has no half-closed state), leaves its answer to the next one, which knows it by the id.

The host may do all here that the agent's user may.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time

try:
    from virtserial.client import HostStream
    from virtserial.guest import PeerAway, open_port, wait_for_port
except ImportError:  # in a guest there is the guest's library alone
    from virtserial_guest import PeerAway, open_port, wait_for_port


def ping(_request):
    return {"time": time.time()}


def facts(_request):
    return {"system": platform.platform()}


def read(request):
    with open(request["path"], "rb") as file:
        return {"text": file.read(1 << 20).decode("utf-8", "replace")}


def run(request):
    done = subprocess.run(request["words"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
    return {"status": done.returncode, "output": done.stdout[-100_000:].decode("utf-8", "replace")}


ACTIONS = {"ping": ping, "facts": facts, "read": read, "run": run}


def answer(line):
    told = {}
    try:
        request = json.loads(line)
        told = {"id": request["id"]} if "id" in request else {}
        return {**told, "ok": True, **ACTIONS[request["do"]](request)}
    except Exception as error:  # whatever a request leads to is told, and the next one is served
        return {**told, "ok": False, "error": f"{type(error).__name__}: {error}"}


def serve(name):
    wait_for_port(name)
    with open_port(name) as port:
        while True:
            port.wait_connected()
            with contextlib.suppress(PeerAway):  # a host that does not wait for its answer
                while (line := port.readline()).endswith(b"\n"):
                    if line.strip():
                        port.write(json.dumps(answer(line)).encode() + b"\n")


def ask(address, request, timeout=30):
    """The host's half: ask, and wait for the answer to this request."""
    request = {"id": os.urandom(4).hex(), **request}
    with HostStream(address) as port:
        if not port.wait_connected(timeout):
            raise SystemExit(f"{address}: nobody answered in {timeout} s")
        # The empty line ends what a host that was cut short has left behind.
        port.write(b"\n" + json.dumps(request).encode() + b"\n", timeout)
        while line := port.readline(timeout=timeout):
            with contextlib.suppress(ValueError):  # the rest of what somebody else was told
                told = json.loads(line)
                if told.get("id") == request["id"]:
                    return told
    raise SystemExit("the guest's agent has gone")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        try:
            request = dict(json.loads(sys.argv[2]))
        except (TypeError, ValueError):
            sys.exit(f"a request is a JSON object, and not {sys.argv[2]!r}")
        print(json.dumps(ask(sys.argv[1], request)))
    elif len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        serve(sys.argv[1])
    else:
        sys.exit(__doc__)
