"""Several coroutines that live and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence


async def first_of(*coroutines: Coroutine[object, object, None]) -> None:
    """Run all until the first ends, cancel the others, and raise what that first one raised.

    ``asyncio.TaskGroup`` waits for all of them; it came with Python 3.11.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancel(tasks)
    for task in ended:
        task.result()


async def _cancel(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Cancel them until they have ended.

    Once isn't enough: before Python 3.12, ``asyncio.wait_for`` forgets that it was cancelled when
    what it waited for came in the same moment.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=0.1)
