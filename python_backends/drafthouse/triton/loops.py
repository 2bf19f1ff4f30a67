"""Event loops that make calls to other models."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

# Every call waits in a thread. The default pool of a two-core machine has six: stuck calls would use them up.
MAX_CALLS = 64


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop whose pool has a thread for every call that may be under way."""
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="bls"))
    return loop
