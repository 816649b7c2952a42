from __future__ import annotations

import asyncio

import pytest


@pytest.fixture
def run():
    """Run a coroutine in an event loop of its own."""

    def run_in_time(coroutine):
        async def limited():
            async with asyncio.timeout(150):
                return await coroutine

        return asyncio.run(limited())

    return run_in_time
