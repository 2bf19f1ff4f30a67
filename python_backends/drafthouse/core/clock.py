"""The clock by which stages are timed."""

import asyncio


def now_ns() -> int:
    """Nanoseconds on the running event loop's clock.

    A server's loop has the monotonic clock. A replay's loop has a virtual one, so that the same pipeline, cost tables and
    decisions run in virtual time (`drafthouse_load.replay`).
    """
    return int(asyncio.get_running_loop().time() * 1e9)
