"""A guest agent: answers the host's requests, one JSON object a line, and survives the host's coming and going.

    guest# python3 guest_agent.py org.example.agent
    host$ echo '{"do": "run", "words": ["uname", "-r"]}' | socat -t 5 - UNIX:/run/vm/agent
    {"ok": true, "status": 0, "output": "6.1.0\\n"}

The host may do all here that the agent's user may.
"""

import contextlib
import json
import platform
import subprocess
import sys
import time

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
    try:
        request = json.loads(line)
        return {"ok": True, **ACTIONS[request["do"]](request)}
    except Exception as error:  # whatever a request leads to is told, and the next one is served
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def serve(name):
    wait_for_port(name)
    with open_port(name) as port:
        while True:
            port.wait_connected()
            with contextlib.suppress(PeerAway):  # a host that does not wait for its answer
                while (line := port.readline()).endswith(b"\n"):
                    port.write(json.dumps(answer(line)).encode() + b"\n")


if __name__ == "__main__":
    serve(sys.argv[1])
