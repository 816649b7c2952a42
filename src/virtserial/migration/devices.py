"""The controllers of a machine that is moved: the keeper's half of daemon/worker/relocation.py.

What is said of a controller is said by the worker, and checked like a stranger's word where it is used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from virtserial.channel.requests import Load, LogWrites, Pause, Resume, Save, Store, TouchWritten
from virtserial.errors import ConfigError
from virtserial.migration.dbus import MAX_STATE
from virtserial.pci.layout import PCI_CONFIG_SPACE_SIZE
from virtserial.state.backlogs import MAX_BACKLOGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.channel.requests import Request
    from virtserial.daemon.keeper.keeper import Keeper
    from virtserial.machine.model import Controller

MAX_WITH_BACKLOGS: Final = MAX_STATE // 2
"""Bytes of all states together; in base64 they are two thirds of what QEMU takes."""


class Devices:
    """Every controller there is.  All methods raise ConfigError where the worker refuses, or ends."""

    def __init__(self, keeper: Keeper) -> None:
        self._machine = keeper.machine
        self._workers = keeper.workers

    @property
    def controllers(self) -> Sequence[Controller]:
        """The controllers, in the order in which they were plugged in."""
        return self._machine.controllers

    def log_writes(self, on: bool) -> None:
        """Note which pages of guest memory are written, from now on, or no more."""
        for controller in self.controllers:
            self._ask(LogWrites(self._workers.next_request(), controller.index, on))

    def pause(self) -> dict[int, bytes]:
        """Pause all; return each one's PCI configuration space by its index.  Again is harmless."""
        return {controller.index: self._pause(controller) for controller in self.controllers}

    def _pause(self, controller: Controller) -> bytes:
        space = self._ask(Pause(self._workers.next_request(), controller.index))
        if len(space) != PCI_CONFIG_SPACE_SIZE:
            raise ConfigError(f"the worker tells {len(space)} bytes of configuration space")
        return space

    def touch_written(self, controller: Controller) -> None:
        """Have QEMU mark every page dirty that one has written since `log_writes`."""
        self._ask(TouchWritten(self._workers.next_request(), controller.index))

    def save_all(self) -> list[bytes]:
        """Return the states of all, which are paused: with backlogs, unless too little of QEMU's stream is left."""
        share = MAX_BACKLOGS // max(1, len(self.controllers))
        states = [self._save(controller, share) for controller in self.controllers]
        if sum(map(len, states)) > MAX_WITH_BACKLOGS:
            states = [self._save(controller, 0) for controller in self.controllers]
        return states

    def _save(self, controller: Controller, backlogs: int) -> bytes:
        memory = os.memfd_create("virtserial state", os.MFD_CLOEXEC)
        try:
            self._ask(Save(self._workers.next_request(), controller.index, backlogs), memory)
            return os.pread(memory, os.fstat(memory).st_size, 0)
        finally:
            os.close(memory)

    def load(self, controller: Controller, state: bytes) -> None:
        """Give one another's state; it stays paused with it until `resume`."""
        memory = os.memfd_create("virtserial state", os.MFD_CLOEXEC)
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(state)
            self._ask(Load(self._workers.next_request(), controller.index), memory)
        finally:
            os.close(memory)

    def store(self, controller: Controller, data: bytes, address: int) -> None:
        """Have QEMU store words at a guest-physical address, for one that is a bus master."""
        self._ask(Store(self._workers.next_request(), controller.index, address, data))

    def resume(self, *, signal: bool) -> None:
        """Let all run again; `signal`: interrupt each driver once for every queue."""
        for controller in self.controllers:
            self._ask(Resume(self._workers.next_request(), controller.index, signal))

    def _ask(self, request: Request, *fds: int) -> bytes:
        answer = self._workers.ask(request, fds)
        if answer.error is not None:
            raise ConfigError(answer.error)
        return answer.data
