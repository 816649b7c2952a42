"""Ending tasks that swallow a cancellation."""

import asyncio

from virtserial.tasks import end_tasks


def test_a_task_that_swallows_a_cancellation_ends():
    # As a package of others waits for the answer to a request; from Python 3.12 on, wait_for swallows nothing.
    async def scenario():
        answers = asyncio.Queue()
        got = []

        async def ask():
            while True:
                answer = asyncio.get_running_loop().create_future()
                answers.put_nowait(answer)
                got.append(await asyncio.wait_for(answer, 60))

        task = asyncio.create_task(ask())
        (await answers.get()).set_result("in the turn of the cancellation")
        async with asyncio.timeout(20):
            await end_tasks(task)
        assert task.cancelled()

    asyncio.run(scenario())


def test_tasks_that_have_ended_keep_their_results_and_errors():
    async def scenario():
        async def fail():
            raise OSError("broken")

        good, bad, endless = map(asyncio.create_task, (asyncio.sleep(0, "done"), fail(), asyncio.sleep(3600)))
        await asyncio.wait([good, bad])
        await end_tasks(good, bad, endless)
        assert good.result() == "done"
        assert str(bad.exception()) == "broken"
        assert endless.cancelled()

    asyncio.run(scenario())
