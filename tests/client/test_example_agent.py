"""examples/guest_agent.py with the embedded guest: each host gets the answer to its own request."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
from support.client_machine import running
from support.places import ENVIRONMENT, ROOT
from support.waiting import wait_until

EXAMPLE = str(ROOT / "examples" / "guest_agent.py")
NAME = "org.example.agent"


@pytest.fixture
def agent(folder):
    """The agent in a guest; the address of its port's host end."""
    options = (
        *("-device", f"virtio-serial,id=ser0,socket={folder}/device"),
        *("-chardev", f"socket,id=c0,path={folder}/agent,server=on,wait=off"),
        *("-device", f"virtserialport,chardev=c0,name={NAME}"),
    )
    port = folder / "run/virtio-ports" / NAME
    with (
        running("serve", *options),
        running("guest", "attach", f"{folder}/device", "--as", "pty", "--run-dir", f"{folder}/run"),
    ):
        wait_until(port.exists)
        # By its path, as the help promises; the driver's folder is none that the library knows.
        process = subprocess.Popen([sys.executable, EXAMPLE, port], env=ENVIRONMENT)
        try:
            yield f"{folder}/agent"
        finally:
            process.terminate()
            process.wait(60)


def ask(address, **request):
    words = [sys.executable, EXAMPLE, f"unix:{address}", json.dumps(request)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_answer_is_told_to_who_asked(agent, tmp_path):
    for text in (b'{"id": "early", "do": "run", "words": ["sleep", "0.3"]}\n', b'{"id": "cut'):
        with socket.socket(socket.AF_UNIX) as hasty:
            hasty.connect(agent)
            hasty.sendall(text)
            hasty.shutdown(socket.SHUT_WR)
    answer = ask(agent, do="run", words=["echo", "mine"])
    assert (answer["ok"], answer["output"]) == (True, "mine\n")
    assert answer["id"] not in ("early", None)
    assert ask(agent, do="nothing")["ok"] is False
    assert ask(agent, do="ping")["ok"] is True
