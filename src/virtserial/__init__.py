"""virtserial: virtio-serial as a process of its own, beside an unmodified VMM.

    import virtserial

    with virtserial.serve(["org.example.agent"]) as machine:
        print(machine.qemu_arguments)                  # for QEMU's command line
        port = machine.port("org.example.agent")       # the host's end, a stream
        machine.wait_guest("org.example.agent")
        port.write(b"hello, guest\\n")

`async with` gives the same for asyncio.  The names of `__all__` are the stable interface (docs/api.md).

Importing this package loads nothing of it: the command line and the device process start in milliseconds.  Its names
are loaded at their first use.  docs/architecture.md tells what each room is for.
"""

TYPE_CHECKING = False  # as type checkers know it, without an import of typing

if TYPE_CHECKING:
    from virtserial.embed import AsyncEmbeddedGuest, AsyncMachine, EmbeddedGuest, Machine, Serving, serve
    from virtserial.embed.streams import AsyncStream, HostStream, PeerAway, PortRemoved, PortStream
    from virtserial.errors import ConfigError, PeerError, StateError, VirtserialError
    from virtserial.version import __version__

__all__ = [
    "AsyncEmbeddedGuest",
    "AsyncMachine",
    "AsyncStream",
    "ConfigError",
    "EmbeddedGuest",
    "HostStream",
    "Machine",
    "PeerAway",
    "PeerError",
    "PortRemoved",
    "PortStream",
    "Serving",
    "StateError",
    "VirtserialError",
    "__version__",
    "serve",
]

_HOMES = {
    "virtserial.embed": ("AsyncEmbeddedGuest", "AsyncMachine", "EmbeddedGuest", "Machine", "Serving", "serve"),
    "virtserial.embed.streams": ("AsyncStream", "HostStream", "PeerAway", "PortRemoved", "PortStream"),
    "virtserial.errors": ("ConfigError", "PeerError", "StateError", "VirtserialError"),
    "virtserial.version": ("__version__",),
}


if not TYPE_CHECKING:  # A type checker would take any name.

    def __getattr__(name: str) -> object:
        """Load a name of `__all__` at its first use."""
        for home, names in _HOMES.items():
            if name in names:
                from importlib import import_module

                value = globals()[name] = getattr(import_module(home), name)
                return value
        raise AttributeError(f"module 'virtserial' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
