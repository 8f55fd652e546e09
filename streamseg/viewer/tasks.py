"""Groups of asyncio tasks that end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def run_until_first_ends(*coroutines: Coroutine[object, object, None]) -> None:
    """Run coroutines until the first one ends, cancel the others, and raise its exception.

    ``asyncio.TaskGroup`` waits for all of them and requires Python 3.11.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Cancelled repeatedly: before Python 3.12, asyncio.wait_for loses a cancellation that
        # arrives at the same moment as its result.
        while running := [task for task in tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=0.1)
    for task in ended:
        task.result()
