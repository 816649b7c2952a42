"""Saving a controller's state to a file and restoring it from one: the worker's half (keeper/saved_state.py)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.channel.messages import Answer
from virtserial.channel.requests import (
    Load,
    LogWrites,
    Pause,
    Restore,
    Resume,
    Save,
    Store,
    TouchWritten,
)
from virtserial.daemon.worker import relocation
from virtserial.errors import ConfigError, VirtserialError

if TYPE_CHECKING:
    from virtserial.channel.requests import Request
    from virtserial.daemon.worker.guest_device import GuestDevice


def answer_request(device: GuestDevice, request: Request, fds: list[int]) -> Answer:
    """Do what the keeper asks and return what to say about it; `fds` are closed."""
    error, data = None, b""
    try:
        match request:
            case LogWrites():
                relocation.log_writes(device, request.on)
            case Pause():
                data = relocation.pause(device)
            case TouchWritten():
                relocation.touch_written(device)
            case Load():
                relocation.load(device, fds[0])
            case Store():
                relocation.store(device, request.address, request.data)
            case Save():
                _save(device, fds[0], request.backlogs)
            case Restore():
                _restore(device, fds[0])
            case Resume():
                relocation.resume(device, request.signal)
    except VirtserialError as refused:
        error = str(refused)
    except OSError as failed:
        error = f"the file of the saved state: {failed.strerror}"
    finally:
        for fd in fds:
            os.close(fd)
    return Answer(request.request, error, data)


def _save(device: GuestDevice, fd: int, backlogs: int | None) -> None:
    was_paused = device.console.paused
    device.pause()
    try:
        state = memoryview(device.save_state(backlogs))
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
    try:
        relocation.load(device, fd)
    finally:
        relocation.resume(device, signal=False)
