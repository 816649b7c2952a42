"""Fixtures of pytest for who tests a guest agent, a host program, a driver or a device.  pytest finds them by itself.

| fixture | gives |
|---|---|
| `virtserial_serve(ports, ...)` | a device: virtserial.Machine; arguments as those of virtserial.serve |
| `virtserial_attach(machine or path)` | our guest driver on it, or on any vfio-user device: virtserial.EmbeddedGuest |
| `virtserial_boot(machine, ...)` | a real QEMU with a Linux guest on it: virtserial.rig.Guest; arguments as its own |

What a fixture gives ends with the test.  `virtserial_boot` skips the test where no QEMU can be had.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    from virtserial.embed import EmbeddedGuest, Machine
    from virtserial.rig import Guest

# Every pytest run where virtserial is installed imports this file: the rest is imported when a fixture is used.


class Serve(Protocol):
    """The type of `virtserial_serve`."""

    def __call__(
        self,
        ports: Iterable[str] = (),
        *,
        consoles: Iterable[str] = (),
        options: Sequence[str] = (),
        vhost_user: bool = False,
        **properties: object,
    ) -> Machine: ...


class Attach(Protocol):
    """The type of `virtserial_attach`."""

    def __call__(self, device: Machine | os.PathLike[str] | str, *, vhost_user: bool = False) -> EmbeddedGuest: ...


class Boot(Protocol):
    """The type of `virtserial_boot`."""

    def __call__(self, machine: Machine | None = None, **options: Any) -> Guest: ...  # noqa: ANN401


@pytest.fixture
def virtserial_serve() -> Iterator[Serve]:
    """A device for the test: virtserial.Machine, by the arguments of virtserial.serve."""
    from virtserial.embed import serve

    with ExitStack() as stack:
        yield lambda ports=(), **words: stack.enter_context(serve(ports, **words))


@pytest.fixture
def virtserial_attach() -> Iterator[Attach]:
    """Our guest driver on a machine, or on any vfio-user or vhost-user socket: virtserial.EmbeddedGuest."""
    from virtserial.embed import EmbeddedGuest, Machine

    with ExitStack() as stack:

        def attach(device: Machine | os.PathLike[str] | str, *, vhost_user: bool = False) -> EmbeddedGuest:
            guest = device.attach() if isinstance(device, Machine) else EmbeddedGuest(device, vhost_user=vhost_user)
            return stack.enter_context(guest)

        yield attach


@pytest.fixture
def virtserial_boot() -> Iterator[Boot]:
    """A real QEMU with a Linux guest on a machine: virtserial.rig.Guest.  Skips the test where there can be none."""
    from virtserial.rig import Guest, RigUnavailable

    with ExitStack() as stack:

        def boot(machine: Machine | None = None, **options: Any) -> Guest:  # noqa: ANN401
            devices = [*(machine.qemu_arguments if machine is not None else ()), *options.pop("devices", ())]
            try:
                return stack.enter_context(Guest(devices, **options))
            except RigUnavailable as reason:
                pytest.skip(f"no real guest here: {reason}")

        yield boot
