"""One server that may be shared and interrupted at any moment: events are arrivals, ends and, for LAS, jobs that catch up with each other.

Far below the round-by-round simulation in detail, and so exact that closed forms hold for it: see `theory`.
"""

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from math import inf

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def fcfs(arrivals: Floats, sizes: Floats) -> Floats:
    """Times in the system, first come first served (Lindley's recursion). [n] each."""
    work = np.cumsum(sizes)
    before = np.concatenate([[0.0], work[:-1]])
    ends: Floats = work + np.maximum.accumulate(arrivals - before)
    return ends - arrivals


def srpt(arrivals: Floats, sizes: Floats) -> Floats:
    """Times in the system, shortest remaining processing time, preemptive resume. [n] each."""
    ends = np.zeros(len(arrivals))
    waiting: list[tuple[float, int]] = []  # remaining work, job
    now = 0.0
    for job, (arrival, size) in enumerate(zip(arrivals.tolist(), sizes.tolist(), strict=True)):
        while waiting:
            remaining, first = waiting[0]
            if now + remaining > arrival:
                heappop(waiting)
                heappush(waiting, (remaining - (arrival - now), first))
                break
            now += remaining
            ends[first] = now
            heappop(waiting)
        now = arrival
        heappush(waiting, (size, job))
    while waiting:
        remaining, first = heappop(waiting)
        now += remaining
        ends[first] = now
    return ends - arrivals


class _Sharing:
    """LAS: groups of jobs with equal attained service; the group with the least shares the server."""

    def __init__(self, num_jobs: int) -> None:
        self.ends = np.zeros(num_jobs)
        self._groups: list[tuple[float, list[tuple[float, int]]]] = []  # most attained first: attained, heap of (size, job)

    def arrive(self, size: float, job: int) -> None:
        """A job that has got nothing yet."""
        if self._groups and self._groups[-1][0] == 0.0:
            heappush(self._groups[-1][1], (size, job))
        else:
            self._groups.append((0.0, [(size, job)]))

    def serve(self, now: float, until: float) -> None:
        """From one arrival to the next."""
        groups = self._groups
        while groups:
            attained, jobs = groups[-1]
            catches_up_at = groups[-2][0] if len(groups) > 1 else inf
            target = min(jobs[0][0], catches_up_at)
            reached = now + (target - attained) * len(jobs)
            if reached > until:
                groups[-1] = (attained + (until - now) / len(jobs), jobs)
                return
            now = reached
            if jobs[0][0] <= catches_up_at:
                self.ends[heappop(jobs)[1]] = now
                groups[-1] = (target, jobs)
                if not jobs:
                    groups.pop()
            else:
                self._merge()

    def _merge(self) -> None:
        _, ours = self._groups.pop()
        attained, theirs = self._groups.pop()
        few, many = sorted((ours, theirs), key=len)
        for job in few:
            heappush(many, job)
        self._groups.append((attained, many))


def las(arrivals: Floats, sizes: Floats) -> Floats:
    """Times in the system, least attained service: those who have got least share the server. [n] each."""
    sharing = _Sharing(len(arrivals))
    now = 0.0
    for job, (arrival, size) in enumerate(zip(arrivals.tolist(), sizes.tolist(), strict=True)):
        sharing.serve(now, arrival)
        sharing.arrive(size, job)
        now = arrival
    sharing.serve(now, inf)
    return sharing.ends - arrivals


SIMULATED: Mapping[str, Callable[[Floats, Floats], Floats]] = {"fcfs": fcfs, "las": las, "srpt": srpt}
