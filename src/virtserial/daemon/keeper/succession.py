"""A keeper's state as a document, and a keeper made of one: what it takes to go on in another program's place.

Sockets, files, terminals and guest memory go over as descriptors, everything else as values.  What is not taken over:
timers (an attempt to connect is made again), and telnet, websocket and TLS connections, which end with every worker.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from virtserial.chardev.tls_credentials import TlsCredentials
from virtserial.daemon.keeper.vmm_listener import VmmListener
from virtserial.errors import StateError
from virtserial.machine.model import Machine
from virtserial.memory.state import VERSION as STATE_VERSION
from virtserial.options.chardev_options import make_chardev

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from virtserial.chardev.base import Chardev, Put, Take
    from virtserial.daemon.keeper.keeper import Keeper

log = logging.getLogger("virtserial.keeper")


def describe(keeper: Keeper, put: Put) -> dict[str, object]:
    """Return all that `build` and `resume` need, as JSON can carry it; `put` takes descriptors."""
    return {
        "state_version": STATE_VERSION,
        "machine": keeper.machine.describe(),
        "objects": [credentials.describe() for credentials in keeper.objects.values()],
        "chardevs": [
            {"id": chardev.id, "recipe": chardev.recipe, "saved": chardev.hand_over(put)}
            for chardev in keeper.chardevs.values()
        ],
        "held": keeper.held.hand_over(put),
        "states": [[index, put(fd)] for index, fd in keeper.states.items()],
        "listeners": [[index, listener.hand_over(put)] for index, listener in keeper.listeners.items()],
        "connections": keeper.connections,
        "workers": keeper.workers.hand_over(),
        "allowed": keeper.path_policy.allowed() if keeper.path_policy is not None else None,
    }


def build(document: Mapping[str, Any]) -> tuple[Machine, dict[str, Chardev], dict[str, TlsCredentials]]:
    """Return the machine, the chardevs and the objects of a document; nothing is opened.

    Raises:
        StateError: this program cannot make them.
    """
    if document["state_version"] != STATE_VERSION:
        raise StateError(
            f"devices' state is kept in another form (version {document['state_version']}, not {STATE_VERSION})"
        )
    objects = {each["id"]: TlsCredentials.from_description(each) for each in document["objects"]}
    chardevs: dict[str, Chardev] = {}
    for each in document["chardevs"]:
        kind, values = each["recipe"]
        chardevs[each["id"]] = make_chardev(each["id"], kind, values, chardevs, objects)
    return Machine.from_description(document["machine"]), chardevs, objects


def resume(keeper: Keeper, document: Mapping[str, Any], take: Take) -> None:
    """Have a keeper of what `build` has made go on, in the place of `Keeper.start`; its worker is still to be started.

    Raises:
        StateError: a descriptor is missing.
    """
    keeper.held.resume(document["held"], take)
    keeper.connections = document["connections"]
    keeper.workers.resume(document["workers"])
    if keeper.path_policy is not None and document["allowed"] is not None:
        keeper.path_policy.allow(document["allowed"])
    names = {controller.index: controller.name for controller in keeper.machine.controllers}
    for index, number in document["states"]:
        keeper.states[index] = take(number)
    for index, saved in document["listeners"]:
        keeper.listeners[index] = VmmListener.resume(
            keeper.loop,
            names[index],
            partial(keeper.vmm_came, index),
            keeper.farewell,
            saved,
            take,
        )
    for _, _, fds in keeper.held.entries("vmm/"):
        keeper.heartbeat.watch(fds[0])
    for each in document["chardevs"]:
        chardev = keeper.chardevs[each["id"]]
        chardev.report = log.warning
        chardev.take_over(keeper.loop, keeper, each["saved"], take)
        keeper.prepare_for(chardev)
