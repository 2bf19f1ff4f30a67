"""Policies by name. Adding one is a file and a line here."""

from collections.abc import Callable

from drafthouse.core.errors import unsupported
from drafthouse.scheduling.policies.fcfs import FirstComeFirstServed
from drafthouse.scheduling.policies.laps_sd import LapsSd
from drafthouse.scheduling.policies.las import LeastAttainedService
from drafthouse.scheduling.policies.mlfq import SkipJoinMlfq
from drafthouse.scheduling.policies.sjf import ShortestJobFirst
from drafthouse.scheduling.policies.srpt_limited import LimitedSrpt
from drafthouse.scheduling.policy import Estimates, Policy

Factory = Callable[[Estimates], Policy]


class PolicyRegistry:
    """Maps names to factories."""

    def __init__(self) -> None:
        self._factories: dict[str, Factory] = {}

    def register(self, name: str, factory: Factory) -> None:
        """Add a policy; ValueError when the name is taken."""
        if name in self._factories:
            raise ValueError(f"scheduling policy {name!r} is registered twice")
        self._factories[name] = factory

    def create(self, name: str, estimator: Estimates) -> Policy:
        """A fresh policy that reads ``estimator``; UNSUPPORTED naming the registered ones when there is none of this name."""
        factory = self._factories.get(name)
        if factory is None:
            raise unsupported("policy", name, f"one of {', '.join(self.names)}")
        return factory(estimator)

    @property
    def names(self) -> tuple[str, ...]:
        """Registered names, sorted."""
        return tuple(sorted(self._factories))


POLICIES = PolicyRegistry()
POLICIES.register(FirstComeFirstServed.name, lambda estimator: FirstComeFirstServed())
POLICIES.register(LapsSd.name, LapsSd)
POLICIES.register(LeastAttainedService.name, LeastAttainedService)
POLICIES.register(SkipJoinMlfq.name, SkipJoinMlfq)
POLICIES.register(ShortestJobFirst.name, ShortestJobFirst)
POLICIES.register(LimitedSrpt.name, LimitedSrpt)
