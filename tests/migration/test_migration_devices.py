"""What the keeper asks workers for when a machine leaves: states with backlogs, as far as QEMU's stream has room."""

import os
from types import SimpleNamespace

import pytest

from virtserial.channel.messages import Answer
from virtserial.migration.dbus import MAX_STATE
from virtserial.migration.devices import Devices
from virtserial.migration.payload import MovedController, Payload, pack
from virtserial.state.backlogs import MAX_BACKLOGS


class Workers:
    """Saves controllers whose states have a size without backlogs, and full backlogs."""

    def __init__(self, *sizes):
        self.sizes = sizes
        self.asked = []

    def next_request(self):
        return len(self.asked)

    def ask(self, request, fds):
        self.asked.append(request.backlogs)
        os.pwrite(fds[0], bytes(self.sizes[request.controller] + request.backlogs * 4 // 3), 0)
        return Answer(request.request, None, b"")


@pytest.mark.parametrize(
    ("sizes", "asked"),
    [
        ((20_000,), [MAX_BACKLOGS]),
        ((20_000, 90_000), [MAX_BACKLOGS // 2] * 2),
        ((20_000, 400_000), [MAX_BACKLOGS // 2] * 2 + [0, 0]),
    ],
)
def test_backlogs_share_what_the_stream_has_room_for(sizes, asked):
    workers = Workers(*sizes)
    controllers = [SimpleNamespace(index=index) for index in range(len(sizes))]
    devices = Devices(SimpleNamespace(machine=SimpleNamespace(controllers=controllers), workers=workers))
    states = devices.save_all()
    assert workers.asked == asked
    moved = tuple(MovedController("bus", bytes(256), bytes(16 * 64), state) for state in states)
    assert len(pack(Payload(True, moved))) < MAX_STATE * 3 // 4
