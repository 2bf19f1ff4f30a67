"""What the pipeline asks of a scheduling policy. A policy sees figures about requests, never the requests themselves."""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Schedulable(Protocol):
    """What a policy may know about one request. Everything is read-only and free to read."""

    @property
    def request_uid(self) -> int:
        """uint64, unique."""
        ...

    @property
    def sequence_no(self) -> int:
        """Order of arrival, without ties and untouched by clock changes."""
        ...

    @property
    def priority(self) -> int:
        """The client's `request_priority`; 0 when it gave none."""
        ...

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        ...

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far: the service attained."""
        ...

    @property
    def max_tokens(self) -> int:
        """The most tokens that may be generated."""
        ...

    @property
    def num_verifications(self) -> int:
        """Rounds in which the target verified this request."""
        ...

    @property
    def num_accepted(self) -> int:
        """Draft tokens accepted so far."""
        ...

    @property
    def is_running(self) -> bool:
        """True while the request holds a slot: not choosing it now preempts it."""
        ...


S = TypeVar("S", bound=Schedulable)


class Policy(Protocol):
    """Chooses who runs in the next round. Called between rounds only, so nothing is preempted inside one."""

    @property
    def name(self) -> str:
        """The name under which it is configured."""
        ...

    @property
    def uses_priority(self) -> bool:
        """False makes the front door refuse `request_priority` instead of ignoring it."""
        ...

    def select(self, candidates: Sequence[S], capacity: int) -> list[S]:
        """At most ``capacity`` (>= 1) of the candidates (waiting and running), at least one if there are any.

        Most urgent first, each at most once. A running candidate that is left out is preempted: it keeps its
        tokens, loses its caches, and is prefilled again when it is next chosen.
        """
        ...
