"""The commands of `virtserial`, in the groups of its help.  `virtserial.cli.NAME` is a command's module, - as _."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUPS: Mapping[str, Mapping[str, str]] = {
    "Serve virtual machines": {
        "serve": "serve controllers and ports to VMMs, over vfio-user or vhost-user",
        "restart": "upgrade a running device in place to the installed code",
        "save": "save the state of a controller to a file",
        "restore": "load a saved state into a controller",
    },
    "See what runs": {
        "ls": "list the virtual machines that run here",
        "ports": "list ports, their state and counters",
        "health": "say whether they are well, for scripts and units",
        "web": "serve a page with consoles and ports, for browsers",
        "exporter": "give Prometheus the figures of all that runs here",
        "fleet": "join, list and set up a fleet: ports as HOST/VM/PORT",
    },
    "Use a port": {
        "console": "use a port from this terminal",
        "send": "send files and folders over a port",
        "receive": "receive files and folders over a port, into one folder",
        "pipe": "join standard input and output to a port",
        "log": "carry log lines, and keep them while the other end is away",
        "record": "record what a port says, with the times",
        "replay": "play a recording: here, into a port, or in a guest's place",
        "ssh": "use ssh to a virtual machine over a port, without a network",
        "ssh-config": "print what ~/.ssh/config needs for scp, rsync and others",
    },
    "In a guest": {
        "guest": "drive devices without the kernel's driver: attach, bind, unbind",
    },
    "Try it": {
        "demo": "move files over ports and use consoles, on an embedded guest",
        "conformance": "check any virtio console device, also with hostile drivers",
    },
}

COMMANDS: Mapping[str, str] = {name: what for group in GROUPS.values() for name, what in group.items()}


def listing() -> str:
    """The commands, a line each, below the headings of their groups; at most 80 columns wide."""
    width = max(map(len, COMMANDS))
    groups = (
        "\n".join([f"{title}:", *(f"  {name:{width}}  {what}" for name, what in group.items())])
        for title, group in GROUPS.items()
    )
    return "\n\n".join(groups)
