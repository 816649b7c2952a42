"""A served machine with a QMP and an HMP monitor."""

from __future__ import annotations

import pytest
from support.serving import QmpClient, serve


@pytest.fixture
def served(folder):
    """`virtserial serve` with a controller of 4 numbers; monitors at `folder`/qmp and `folder`/hmp."""
    with serve(
        *("-device", f"virtio-serial,id=ser0,max_ports=4,socket={folder}/vmm"),
        *("-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
        *("-monitor", f"unix:{folder}/hmp,server=on,wait=off"),
    ) as process:
        yield process


@pytest.fixture
def qmp(served, folder):
    client = QmpClient(f"{folder}/qmp")
    yield client
    client.close()
