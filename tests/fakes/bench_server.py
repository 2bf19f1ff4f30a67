"""A server for benchmarks: answers by rule, counts rounds, and changes its mode when a model is loaded."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from fakes.triton_grpc import final, response

TOKENS_PER_ROUND = {"target_only": 1, "vanilla": 2, "specinfer": 3, "pipeline_only": 2, "cosine": 4}
VERIFY_NS, DRAFT_NS, CALL_NS, WALL_NS = 10_000_000, 2_000_000, 500_000, 14_000_000


@dataclass
class FakeBenchServer:
    """Emits `max_tokens` token ids in rounds of a size that depends on the mode."""

    mode: str = "cosine"
    stuck_in_mode: bool = False
    held_slots: int = 0
    silent_engine: str = ""
    grpc_address: str = ""  # set by who serves it
    loads: list[tuple[str, Any]] = field(default_factory=list)
    counters: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            (
                "rounds",
                "verified_rows",
                "emitted_tokens",
                "drafted",
                "accepted",
                "draft_session_ns",
                "ahead_session_ns",
                "draft_wall_ns",
                "verify_session_ns",
                "verify_wall_ns",
                "round_wall_ns",
                "prefill_session_ns",
            ),
            0,
        )
    )

    def load_model(self, name: str, config_override: Mapping[str, Any] | None = None) -> None:
        """As `TritonServer.load_model`; a load starts the counters of `cosine` at zero."""
        self.loads.append((name, config_override))
        if name == "cosine":
            self.counters = dict.fromkeys(self.counters, 0)
            if config_override is not None and not self.stuck_in_mode:
                self.mode = config_override["parameters"]["mode"]

    def stats(self) -> dict[str, Any]:
        """What `stats_request` answers."""
        engines = {name: {"slots_free": 8, "slots_total": 8} for name in ("target", "drafter_code")}
        engines["target"]["slots_free"] -= self.held_slots
        silent = {self.silent_engine: {"error": "no answer"}} if self.silent_engine else {}
        return {
            "mode": self.mode,
            "precision": "fp32",
            "counters": self.counters,
            "running": 0,
            "queue_len": 0,
            "rehearsing": False,
            "engines": engines | silent,
        }

    def script(self, inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
        """The script of a `FakeTriton`."""
        if "stats_request" in inputs:
            yield response(stats=json.dumps(self.stats()))
        else:
            yield from self._generate(inputs)
        yield final()

    def _generate(self, inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
        (wanted,) = inputs["max_tokens"]
        assert isinstance(wanted, int)
        size = TOKENS_PER_ROUND[self.mode]
        for start in range(0, wanted, size):
            ids = tuple(range(start, min(start + size, wanted)))
            self._book(len(ids), size)
            yield response(
                text_output="x" * len(ids), output_ids=ids, token_sources=(*[0] * (len(ids) - 1), -1), num_output_tokens=len(ids)
            )

    def _book(self, emitted: int, size: int) -> None:
        drafted = 5 if size > 1 else 0
        step = {
            "rounds": 1,
            "verified_rows": 1,
            "emitted_tokens": emitted,
            "drafted": drafted,
            "accepted": emitted - 1,
            "draft_session_ns": DRAFT_NS if drafted else 0,
            "ahead_session_ns": 0,
            "draft_wall_ns": DRAFT_NS + CALL_NS if drafted else 0,
            "verify_session_ns": VERIFY_NS,
            "verify_wall_ns": VERIFY_NS + CALL_NS,
            "round_wall_ns": WALL_NS,
        }
        for name, value in step.items():
            self.counters[name] += value
