"""TCP proxy on loopback that delays, throttles, resets and refuses connections.

Only data from the server to the client are affected; requests are forwarded unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import weakref

_CHUNK_BYTES = 16 * 1024


class ChaosProxy:
    """Proxy from 127.0.0.1:``port`` to 127.0.0.1:``target``; attributes may be set at any time.

    Attributes:
        port: port that accepts connections.
        latency: delay of each chunk, in seconds.
        jitter: maximum of a random additional delay, in seconds.
        rate: bytes per second; None for no limit.
        reset_after: bytes after which a connection is reset; None for never.
        accepted: number of accepted connections.
    """

    def __init__(self, target: int) -> None:
        self.latency = 0.0
        self.jitter = 0.0
        self.rate: float | None = None
        self.reset_after: int | None = None
        self.accepted = 0
        self.port = 0
        self._target = target
        self._closing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._transports: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.listen()

    def listen(self) -> None:
        """Accept connections again after ``refuse``."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)

    def refuse(self) -> None:
        """Reset all connections and refuse new ones."""
        asyncio.run_coroutine_threadsafe(self._refuse(), self._loop).result(5)

    def reset(self) -> None:
        """Reset all connections (RST)."""
        self._loop.call_soon_threadsafe(self._reset)

    def close(self) -> None:
        """Close all connections and stop the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            for listener in self._server.sockets:
                self._loop.remove_reader(listener)
            await asyncio.sleep(0)  # Python 3.11 never closes connections accepted during close()
            self._server.close()
        self._reset()

    async def _close(self) -> None:
        """Close all connections, including connections that are being accepted or opened."""
        self._closing = True
        await self._refuse()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        for transport in list(self._transports):
            transport.abort()
        await asyncio.sleep(0.01)  # the loop closes an aborted connection in its next iteration

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:
            writer.transport.abort()
            return
        self._transports.add(writer.transport)
        task = self._loop.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._transports.add(server_writer.transport)
        writers = {writer, server_writer}
        self._writers |= writers
        try:
            await asyncio.gather(
                self._pump(reader, server_writer, from_server=False),
                self._pump(server_reader, writer, from_server=True),
            )
        finally:
            self._writers -= writers
            for each in writers:
                each.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_server: bool
    ) -> None:
        forwarded = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if from_server:
                    await self._delay(len(data))
                    forwarded += len(data)
                    if self.reset_after is not None and forwarded > self.reset_after:
                        _abort(writer)
                        break
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _delay(self, size: int) -> None:
        if self.latency or self.jitter:
            await asyncio.sleep(self.latency + random.random() * self.jitter)
        if self.rate is not None:
            await asyncio.sleep(size / self.rate)

    def _reset(self) -> None:
        for writer in self._writers:
            _abort(writer)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the other side sees a RST."""
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
