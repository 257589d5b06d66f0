"""The reference: a bare asyncio server that matches nothing and checks nothing.

    python tests/bench/reference.py MODE PING_INTERVAL    # prints its port, ends with its standard input

each        an event is one write to every subscriber
joined      what comes in one turn of the event loop is joined, and is one write to every subscriber
turn        an event is one write to one subscriber, the next in turn
kept        events are kept, and written to whoever asks for them (the body is NDJSON)
"""

import asyncio
import re
import sys

_ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\naccepted\n"
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
_PING = b'15\r\n{"stillalive": 12345}\n\r\n'
_LENGTH = re.compile(rb"Content-Length: (\d+)")


class Reference:
    """All subscribers, and what is on its way to them."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.subscribers: list[asyncio.Transport] = []
        self.kept: list[bytes] = []
        self._gathered: list[bytes] = []
        self._next = 0

    def deliver(self, body: bytes) -> None:
        """What becomes of a body."""
        if self.mode == "kept":
            self.kept.append(b"".join(_chunk(line + b"\n") for line in body.split(b"\n")))
        elif self.mode == "joined":
            if not self._gathered:
                asyncio.get_running_loop().call_soon(self._write_gathered)
            self._gathered.append(_chunk(body + b"\n"))
        elif self.mode == "turn":
            self.subscribers[self._next].write(_chunk(body + b"\n"))
            self._next = (self._next + 1) % len(self.subscribers)
        elif self.subscribers:
            self.write(_chunk(body + b"\n"))

    def write(self, data: bytes) -> None:
        """Write to everybody."""
        for subscriber in self.subscribers:
            subscriber.write(data)

    def _write_gathered(self) -> None:
        data, self._gathered = b"".join(self._gathered), []
        self.write(data)


class Connection(asyncio.Protocol):
    """One connection: a publisher's, or a subscriber's."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._received = b""
        self._room = asyncio.Event()
        self._room.set()
        self._replay: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody has come."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take every request that is complete."""
        self._received += data
        while self._received:
            head, found, rest = self._received.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            size = int(length[1]) if length else 0
            if not found or len(rest) < size:
                return
            self._received = rest[size:]
            if head.startswith(b"PUT"):
                self._transport.write(_ANSWER)
                self._reference.deliver(rest[:size])
            else:
                self._replay = asyncio.create_task(self._subscribe())

    async def _subscribe(self) -> None:
        self._transport.write(_STREAM)
        for data in self._reference.kept:
            await self._room.wait()
            self._transport.write(data)
        self._transport.write(_PING)
        self._reference.subscribers.append(self._transport)

    def pause_writing(self) -> None:
        """Enough waits for the subscriber."""
        self._room.clear()

    def resume_writing(self) -> None:
        """It has read on."""
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Forget a subscriber."""
        self._room.set()
        if self._transport in self._reference.subscribers:
            self._reference.subscribers.remove(self._transport)


def _chunk(line: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(line), line)


async def main(mode: str, ping_interval: float) -> None:
    """Serve until the standard input ends."""
    loop = asyncio.get_running_loop()
    reference = Reference(mode)
    server = await loop.create_server(lambda: Connection(reference), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    while not ended.is_set():
        try:
            await asyncio.wait_for(ended.wait(), ping_interval)
        except TimeoutError:
            reference.write(_PING)
    server.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
