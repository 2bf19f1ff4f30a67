"""When a request is sent again: the server was not available, and nothing of the answer had come yet.

A text that has begun is never begun again: without a seed the second one could be another text.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from drafthouse.core.errors import ErrorCode, invalid
from drafthouse_client.errors import ServerSideError


@dataclass(frozen=True, slots=True)
class Retry:
    """Back-off: every pause is `factor` times the last one, up to `longest_pause_s`, less a random part of it.

    Args:
        attempts: how often a request is sent at most.
        jitter: the share of a pause that is random, so that clients that failed together do not come back together.

    Raises:
        ClientError: INVALID_ARG naming the field.
    """

    attempts: int = 4
    first_pause_s: float = 0.1
    factor: float = 2.0
    longest_pause_s: float = 2.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("attempts", self.attempts >= 1, ">= 1"),
            ("first_pause_s", self.first_pause_s >= 0, ">= 0"),
            ("factor", self.factor >= 1, ">= 1"),
            ("jitter", 0 <= self.jitter <= 1, "0 to 1"),
        ):
            if not holds:
                raise invalid(name, getattr(self, name), allowed)

    def pauses_s(self) -> Iterator[float]:
        """The pauses between the attempts."""
        pause_s = self.first_pause_s
        for _ in range(self.attempts - 1):
            yield min(pause_s, self.longest_pause_s) * (1 - self.jitter * random.random())
            pause_s *= self.factor


class Attempts:
    """The attempts of one request, all within one time limit."""

    def __init__(self, retry: Retry | None, limit_s: float) -> None:
        self._pauses_s = iter(()) if retry is None else retry.pauses_s()
        self._deadline_s = time.monotonic() + limit_s
        self._begun = False
        self.open = True

    def remaining_s(self) -> float:
        """What is left of the time limit; never below 0."""
        return max(0.0, self._deadline_s - time.monotonic())

    def saw_chunk(self) -> None:
        """The answer has begun."""
        self._begun = True

    def ended(self) -> None:
        """The answer is complete."""
        self.open = False

    def pause_after(self, error: ServerSideError) -> float:
        """Seconds to wait before the next attempt. Raises the error itself when there is to be none."""
        if self._begun or error.code is not ErrorCode.UNAVAILABLE:
            raise error
        pause_s = next(self._pauses_s, None)
        if pause_s is None or pause_s >= self.remaining_s():
            raise error
        return pause_s
