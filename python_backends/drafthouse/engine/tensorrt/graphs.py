"""Captured CUDA graphs: a decoding round is some hundred short kernels, and starting them one by one takes longer than running them.

A graph is tied to one call shape, one range of slots and the execution context it was captured from, so each has a context of its own
(their activations share memory). Shapes are padded to powers of two first: see ``profiles.bucket``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from drafthouse.engine.tensorrt.profiles import CallShape, Profile, bucket
from drafthouse.engine.tensorrt.runtime import Context


@dataclass(frozen=True, slots=True)
class GraphKey:
    """What a captured graph is for: a padded call shape, on the slots from ``first_slot`` on."""

    shape: CallShape
    first_slot: int


@dataclass(slots=True)
class GraphFigures:
    """How calls ran so far."""

    replayed: int = 0
    eager: int = 0  # decoding calls without a graph
    captured: int = 0


@dataclass(slots=True)
class GraphCache:
    """At most ``capacity`` graphs, captured where a shape comes up again."""

    capacity: int
    figures: GraphFigures = field(default_factory=GraphFigures)
    _graphs: dict[GraphKey, Callable[[], None]] = field(default_factory=dict)
    _contexts: dict[GraphKey, Context] = field(default_factory=dict)
    _seen: set[GraphKey] = field(default_factory=set)
    _refused: set[GraphKey] = field(default_factory=set)

    def admits(self, key: GraphKey) -> bool:
        """Whether a call of this key is to be padded for a graph: it has one, or it has come up before and there is room for one more."""
        if key in self._contexts or key in self._refused:
            return key in self._contexts
        has_come_up = key in self._seen
        self._seen.add(key)
        return has_come_up and len(self._contexts) < self.capacity

    def context(self, key: GraphKey, make: Callable[[], Context]) -> Context:
        """The key's execution context, made on its first call."""
        if key not in self._contexts:
            self._contexts[key] = make()
        return self._contexts[key]

    def replay(self, key: GraphKey) -> Callable[[], None] | None:
        """Starts the graph; None where it is not captured yet."""
        return self._graphs.get(key)

    def keep(self, key: GraphKey, graph: Callable[[], None]) -> None:
        """Adds a captured graph."""
        self._graphs[key] = graph
        self.figures.captured += 1

    def refuse(self, key: GraphKey) -> None:
        """Gives up a key that could not be captured: its calls run one kernel at a time from now on."""
        self._contexts.pop(key, None)
        self._refused.add(key)


def graph_key(call: CallShape, first_slot: int, decode: Profile) -> GraphKey:
    """The padded shape to run ``call`` with. From slot 0 on, unless that makes more than twice as many rows: then fewer graphs serve."""
    slots = decode.most.rows
    from_zero = bucket(first_slot + call.rows, slots)
    start = 0 if from_zero <= 2 * bucket(call.rows, slots) else first_slot
    rows = bucket(first_slot - start + call.rows, slots - start)
    places = bucket(call.places, decode.most.places)
    return GraphKey(CallShape(rows, places, bucket(call.packed, decode.most.packed)), start)
