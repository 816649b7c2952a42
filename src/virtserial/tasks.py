"""Ending the tasks of asyncio."""

from __future__ import annotations

import asyncio
from typing import Any, Final

AGAIN: Final = 1.0
"""Seconds after which a task that has not ended is cancelled again."""


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and return when they have ended; their results and errors stay in them.

    Once is not enough: before Python 3.12, asyncio.wait_for, by which others' packages wait for an answer, swallows a
    cancellation that comes in one turn of the loop with the answer, and the task goes on.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=AGAIN)
    for task in tasks:
        if not task.cancelled():
            # Read, so that asyncio does not report an error that nobody waits for.
            task.exception()
