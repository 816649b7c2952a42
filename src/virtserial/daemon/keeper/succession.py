"""Succession: what a keeper leaves for the program that takes its place, and how that takes it over.

| part | leaves | taken over by |
|---|---|---|
| machine, objects | values | `build`, before anything is opened |
| chardevs | a recipe, then what is open: listening sockets, files, ptys, processes | `build`, then Chardev.take_over |
| held descriptors | messages and descriptors | HeldDescriptors.hold |
| controllers | state memory, listening socket, VMMs that wait | Vmms.take_over |
| workers | what the last one left, counts | Supervisor.take_over; it starts the next one last |
| monitors | clients' connections, what they have not been sent | monitor.server.Monitors |

Not taken over: timers (an attempt to connect is made again), and telnet, websocket and TLS connections, which end with
every worker.  A document of another version is refused (handover.py): the old program then keeps serving.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from virtserial.channel.messages import Listen
from virtserial.chardev.reach import ANYWHERE
from virtserial.chardev.tls_credentials import TlsCredentials
from virtserial.daemon.keeper.document import ChardevLeft, Document, HeldLeft
from virtserial.errors import StateError
from virtserial.machine.model import Machine
from virtserial.memory.state import VERSION as STATE_VERSION
from virtserial.options.chardev_options import make_chardev

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from virtserial.chardev.base import Chardev, Put, Take
    from virtserial.daemon.keeper.keeper import Keeper

log = logging.getLogger("virtserial.keeper")


def describe(
    keeper: Keeper, put: Put, monitors: Mapping[str, object] | None, words: Sequence[str], renewals: int
) -> Document:
    """Return all that `build` and `take_over` need; `put` takes descriptors."""
    return Document(
        state_version=STATE_VERSION,
        machine=keeper.machine.describe(),
        objects=tuple(credentials.describe() for credentials in keeper.objects.values()),
        chardevs=tuple(
            ChardevLeft(chardev.id, *chardev.recipe, chardev.hand_over(put), chardev.reach is not ANYWHERE)
            for chardev in keeper.chardevs.values()
        ),
        # Where workers accept, chardevs say anew.
        held=tuple(
            HeldLeft(message, tuple(map(put, fds))) for message, fds in keeper.held if not isinstance(message, Listen)
        ),
        controllers=keeper.vmms.hand_over(put),
        connections=keeper.back_ends.connections,
        workers=keeper.workers.hand_over(),
        allowed=tuple(keeper.path_policy.allowed()) if keeper.path_policy is not None else None,
        monitors=monitors,
        words=tuple(words),
        renewals=renewals,
    )


def build(document: Document) -> tuple[Machine, dict[str, Chardev], dict[str, TlsCredentials]]:
    """Return the machine, the chardevs and the objects of a document; nothing is opened.

    Raises:
        StateError: this program cannot make them.
    """
    if document.state_version != STATE_VERSION:
        raise StateError(
            f"devices' state is kept in another form (version {document.state_version}, not {STATE_VERSION})"
        )
    objects = {}
    for described in document.objects:
        credentials = TlsCredentials.from_description(described)
        objects[credentials.id] = credentials
    chardevs: dict[str, Chardev] = {}
    for each in document.chardevs:
        chardevs[each.id] = make_chardev(each.id, each.kind, each.values, chardevs, objects)
    return Machine.from_description(document.machine), chardevs, objects


def take_over(keeper: Keeper, document: Document, take: Take) -> None:
    """Have a keeper of what `build` has made take over, in the place of `Keeper.start`; no worker is started yet.

    Raises:
        StateError: a descriptor is missing.
    """
    for each in document.held:
        keeper.held.hold(each.message, [take(number) for number in each.descriptors])
    keeper.workers.take_over(document.workers)
    if keeper.path_policy is not None and document.allowed is not None:
        keeper.path_policy.allow(document.allowed)
    controllers = {controller.index: controller for controller in keeper.machine.controllers}
    for left in document.controllers:
        keeper.vmms.take_over(left, controllers[left.controller], take)
    keeper.back_ends.connections = document.connections
    for chardev_left in document.chardevs:
        chardev = keeper.chardevs[chardev_left.id]
        chardev.report = log.warning
        if chardev_left.restricted and keeper.path_policy is not None:
            chardev.reach = keeper.path_policy
        chardev.take_over(keeper.loop, keeper.back_ends, chardev_left.saved, take)
        keeper.back_ends.prepare_for(chardev)
        keeper.back_ends.let_accept(chardev)
