"""Saving a controller's state to a file and restoring it from one: the worker's half (keeper/saved_state.py)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.channel.messages import Answer, Restore, Save
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from virtserial.channel.messages import Request
    from virtserial.daemon.worker.guest_device import GuestDevice


def answer_request(device: GuestDevice, request: Request, fds: list[int]) -> Answer:
    """Do what the keeper asks and return what to say about it; `fds` are closed."""
    error = None
    try:
        match request:
            case Save():
                _save(device, fds[0])
            case Restore():
                _restore(device, fds[0])
            case _:
                device.resume()
    except ConfigError as refused:
        error = str(refused)
    except OSError as failed:
        error = f"the file of the saved state: {failed.strerror}"
    finally:
        for fd in fds:
            os.close(fd)
    return Answer(request.request, error)


def _save(device: GuestDevice, fd: int) -> None:
    was_paused = device.console.paused
    device.pause()
    try:
        state = memoryview(device.save_state())
        start = 0
        while start < len(state):
            start += os.pwrite(fd, state[start:], start)
    except OSError:
        if not was_paused:
            device.resume()
        raise


def _restore(device: GuestDevice, fd: int) -> None:
    if device.console.status:
        raise ConfigError(f"{device.name} is used by a guest's driver: a state is restored before that comes")
    limit = device.max_state_size
    state = bytearray()
    while len(state) <= limit and (part := os.pread(fd, limit + 1 - len(state), len(state))):
        state += part
    device.pause()
    try:
        device.load_state(bytes(state))
    finally:
        device.resume()
