"""Cancellation of receiving tasks, and forks of a process with an open subscriber."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading

import pytest
from support.publishers import result, service
from support.subscribers import raw_publisher, status_json

import streamseg
from streamseg import protocol


@pytest.mark.parametrize("messages", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_cancellation_during_a_message_is_kept(messages: int) -> None:
    rng = random.Random(0)

    async def count_ignored_cancellations(pub, sub) -> int:
        count = 0
        for seq in range(messages):
            task = asyncio.ensure_future(sub.receive_async(None))
            await asyncio.sleep(0.005)
            pub.send_multipart([protocol.topic("status", ""), status_json(seq=seq)])
            await asyncio.sleep(rng.uniform(0, 0.004))
            task.cancel()
            _, running = await asyncio.wait([task], timeout=1)
            if running:
                count += 1
                task.cancel()
                await asyncio.wait([task])
        return count

    with raw_publisher() as (pub, address), streamseg.connect(address) as sub:
        assert asyncio.run(count_ignored_cancellations(pub, sub)) == 0


FORK_PROGRAM = """
import gc, os, signal
from streamseg.errors import UsageError
import streamseg

sub = streamseg.connect({address!r}, newest={newest}, timeout=20)
first = sub.receive().index
child = os.fork()
if child:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(sub.receive().index > first, sub.ended)
    sub.close()
else:
    signal.alarm(10)
    {child_code}
"""


@pytest.mark.slow
@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize(
    "child_code",
    [
        "sub.close(); sub.close(); assert sub.ended and sub.receive() is None",
        "del sub; gc.collect()",
        "pass",
        "try: sub.receive()\n    except UsageError: pass\n    else: raise SystemExit(3)",
    ],
    ids=["close", "collected", "exit", "received in"],
)
def test_fork_exits_at_once_and_parent_continues(child_code, newest) -> None:
    with service() as running:
        program = FORK_PROGRAM.format(
            address=running.masks_endpoint, newest=newest, child_code=child_code
        )
        ended = threading.Event()
        publisher_thread = threading.Thread(target=_put_results_until, args=(running, ended))
        publisher_thread.start()
        try:
            completed = subprocess.run(
                # Python 3.12 warns about a fork in a process with threads
                [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
                check=False,
                capture_output=True,
                text=True,
                timeout=60,
            )
        finally:
            ended.set()
            publisher_thread.join()
        assert (completed.stdout, completed.stderr) == ("0\nTrue False\n", "")


def _put_results_until(running, ended) -> None:
    index = 0
    while not ended.wait(0.05):
        running.put(result(index))
        index += 1
