"""What docs/metrics.md shows works: its commands are run as they stand, at another port, beside a device."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys

import pytest
from support.places import ENVIRONMENT, ROOT
from support.serving import serve

PAGE = (ROOT / "docs/metrics.md").read_text()


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_the_page_s_commands(folder):
    pytest.importorskip("prometheus_client")
    commands = re.findall(r"^    \$ (.*)$", PAGE, re.MULTILINE)
    assert len(commands) >= 5
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    lines = "\n".join(commands).replace("9817", port)
    script = f"set -eu -o pipefail\ntrap 'kill $(jobs -p)' EXIT\n{lines}\n"
    (folder / "bin").mkdir()
    program = folder / "bin" / "virtserial"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m virtserial "$@"\n')
    program.chmod(0o755)
    options = [
        "--name", "alpha", "-device", f"virtio-serial,id=ser0,socket={folder}/s",
        "-chardev", "null,id=c0", "-device", "virtserialport,chardev=c0,name=org.example.0",
    ]  # fmt: skip
    with serve(*options, registry=folder / "vms"):
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, timeout=50,
            env={
                **ENVIRONMENT, "VIRTSERIAL_REGISTRY": str(folder / "vms"),
                "PATH": f"{folder}/bin:{ENVIRONMENT['PATH']}",
            },
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert 'virtserial_port_bytes_total{controller="ser0",direction="to_host"' in done.stdout
    assert "well: VMs 1, ports 1, open 0, worker restarts 0\n" in done.stdout
    assert done.stdout.endswith("serves\n")


def test_the_extra_that_the_page_names_is_there():
    assert "'.[metrics]'" in PAGE
    assert 'metrics = ["prometheus-client' in (ROOT / "pyproject.toml").read_text()
