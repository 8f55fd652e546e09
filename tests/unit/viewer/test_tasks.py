"""Groups of asyncio tasks that end together."""

from __future__ import annotations

import asyncio
import contextlib

from streamseg.viewer.tasks import run_until_first_ends


async def end_at_once() -> None:
    await asyncio.sleep(0)


def test_first_end_cancels_the_others() -> None:
    cancelled = []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.append(True)

    asyncio.run(run_until_first_ends(wait(), end_at_once(), wait()))
    assert cancelled == [True, True]


def test_task_that_ignores_a_cancellation_is_cancelled_again() -> None:
    async def ignore_first_cancellation() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def run() -> None:
        group = run_until_first_ends(ignore_first_cancellation(), end_at_once())
        await asyncio.wait_for(group, 5)

    asyncio.run(run())
