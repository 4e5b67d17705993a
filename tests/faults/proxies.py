"""A network that misbehaves, between our programs and their broker: slow, cut, deaf in one direction, out of order."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Final

UP, DOWN = "up", "down"  # from the client to the broker, and back
_PIECE_BYTES: Final = 16_384
_PIECES_ON_THE_WAY: Final = 16
_LOOK_S: Final = 0.02
_PUBLISH: Final = 3

# Turns what one side sent into what the other side gets: pieces, in the order and number in which they arrive.
Shape = Callable[[asyncio.StreamReader], AsyncIterator[bytes]]


class Proxy:
    """Passes TCP connections on to `target_port` of loopback; its settings may be changed at any moment.

    delay_s, bytes_per_s (0: any): of each direction. closed: directions in which nothing moves on (the sender's bytes
    wait, as they do behind a dead link). refuses: new connections are closed at once. What is under way is bounded:
    a sender that is faster fills its own buffers.
    """

    def __init__(self, target_port: int, shape: Shape | None = None) -> None:
        self.port = 0
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self.closed: frozenset[str] = frozenset()
        self.refuses = False
        self.connections = 0
        self._target_port = target_port
        self._shape = shape or _pieces
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(60)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        async def end() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection."""

        def reset() -> None:
            for writer in list(self._open):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(reset)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            if self.refuses:
                return
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._open.add(back)
            try:
                ways = [
                    asyncio.create_task(w)
                    for w in (self._pass_on(reader, back, UP), self._pass_on(there, writer, DOWN))
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            finally:
                self._open.discard(back)
                back.transport.abort()
        except OSError:
            return
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        """Until one side ends."""
        under_way: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue(_PIECES_ON_THE_WAY)

        async def take() -> None:
            with suppress(OSError):
                async for piece in self._shape(reader):
                    await under_way.put((self._loop.time() + self.delay_s, piece))
            await under_way.put(None)

        taking = asyncio.create_task(take())
        try:
            while (item := await under_way.get()) is not None:
                due, piece = item
                await asyncio.sleep(max(due - self._loop.time(), 0))
                while way in self.closed:
                    await asyncio.sleep(_LOOK_S)
                writer.write(piece)
                await writer.drain()
                if self.bytes_per_s:
                    await asyncio.sleep(len(piece) / self.bytes_per_s)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)


async def _pieces(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(_PIECE_BYTES):
        yield piece


def shuffled_publishes(rng: random.Random, *, doubled: float, held: float, hold_s: float = 0.1) -> Shape:
    """MQTT packets, some PUBLISH twice (share `doubled`), some after those that follow within `hold_s` (share `held`).

    Every other packet stays where it is, so that the protocol itself stays in order.
    """

    async def shape(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        late: list[bytes] = []
        packets: asyncio.Queue[bytes] = asyncio.Queue(_PIECES_ON_THE_WAY)

        async def read() -> None:
            with suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    await packets.put(await _packet(reader))
            await packets.put(b"")

        reading = asyncio.create_task(read())
        try:
            while True:
                try:
                    packet = await asyncio.wait_for(packets.get(), hold_s if late else None)
                except TimeoutError:
                    packet = None
                if packet == b"":
                    return
                if packet is not None and packet[0] >> 4 == _PUBLISH and rng.random() < held:
                    late.append(packet)
                elif packet is not None:
                    yield packet
                    if packet[0] >> 4 == _PUBLISH and rng.random() < doubled:
                        yield bytes([packet[0] | 0x08]) + packet[1:]
                if late and (packet is None or len(late) > 8 or rng.random() < 0.2):
                    rng.shuffle(late)
                    for each in late:
                        yield each
                    late.clear()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    return shape


async def _packet(reader: asyncio.StreamReader) -> bytes:
    """One whole MQTT packet. Raises IncompleteReadError at the end of the stream."""
    head = await reader.readexactly(2)
    while head[-1] & 0x80:
        head += await reader.readexactly(1)
    size = sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(head[1:]))
    return head + await reader.readexactly(size)
