"""A TCP proxy that makes a wire longer, or cuts it without telling anybody."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK_BYTES = 1 << 16


class SlowWire:
    """Forwards connections to one address. Threads, because asyncio's timers are no finer than a millisecond."""

    def __init__(self, host: str, port: int) -> None:
        self.delay_s = 0.0  # added to every round trip, on the way there
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """Where to connect to, on the loopback."""
        port: int = self._listener.getsockname()[1]
        return port

    def cut(self) -> None:
        """Nothing arrives any more on either side; connections stay open, new ones are accepted and lead nowhere."""
        self._open.clear()

    def mend(self) -> None:
        """Everything arrives, also what was held back, as TCP would repeat it."""
        self._open.set()

    def close(self) -> None:
        """End every connection."""
        self._open.set()
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                self._sockets += [near, far]
                for one in (near, far):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pump(near, far, delayed=True)
                self._pump(far, near, delayed=False)

    def _pump(self, source: socket.socket, sink: socket.socket, delayed: bool) -> None:
        chunks: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def read() -> None:
            data = b"-"
            while data:
                try:
                    data = source.recv(_CHUNK_BYTES)
                except OSError:
                    data = b""
                chunks.put((time.monotonic(), data))

        def write() -> None:
            data = b"-"
            while data:
                arrived_s, data = chunks.get()
                time.sleep(max(0.0, arrived_s + self.delay_s - time.monotonic()) if delayed else 0.0)
                self._open.wait()
                try:
                    sink.sendall(data)
                except OSError:
                    return
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

        for body in (read, write):
            threading.Thread(target=body, daemon=True).start()


@contextmanager
def slow_wire(host: str, port: int) -> Iterator[SlowWire]:
    """A proxy in front of this address for as long as the block runs."""
    wire = SlowWire(host, port)
    try:
        yield wire
    finally:
        wire.close()
