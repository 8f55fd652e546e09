"""Subscribe to two services at once with asyncio, and print the tracks of each frame.

python examples/subscribe_async.py tcp://127.0.0.1:5555 tcp://127.0.0.1:6555
"""

import asyncio
import sys

import streamseg


async def print_tracks(address: str) -> None:
    """Print the track ids of each result until the service ends."""
    with streamseg.connect(address) as results:
        async for result in results:
            print(address, result.source, result.index, result.instances.track_ids.tolist())


async def main() -> None:
    """Read all services concurrently."""
    await asyncio.gather(*(print_tracks(address) for address in sys.argv[1:]))


asyncio.run(main())
