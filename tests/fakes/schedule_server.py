"""A server for `bench schedule`: answers in order of arrival, books rounds, and changes its policy when a model is loaded."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from fakes.bench_server import FakeBenchServer
from fakes.triton_grpc import PERF, final, response

DEFAULTS = {"policy": "fcfs", "max_batch": "0", "max_queue_size": "64", "slots": "0", "mode": "cosine"}
TARGET_SLOTS = 8
ROUND_S = 0.001
ERROR = {"num_requests": 4, "mean_absolute": 1.0, "relative": 0.25, "mean_relative": 0.3, "bias": 0.0, "log_rms": 0.4}


@dataclass
class FakeScheduleServer:
    """A text of 1 + seed % 7 tokens: one from the prefill, then rounds of two, of which the first is a drafter's."""

    deaf_to: str = ""  # this policy is never taken up
    other_text_under: str = ""  # this policy changes the last token
    parameters: dict[str, str] = field(default_factory=lambda: dict(DEFAULTS))
    loads: list[dict[str, str]] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    preemptions: int = 0
    served: list[tuple[str, int]] = field(default_factory=list)  # policy and seed
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.counters = {**FakeBenchServer().counters, "prefill_wall_ns": 0, "recomputed_tokens": 0}
        self.preemptions = 0

    def load_model(self, name: str, config_override: Mapping[str, Any] | None = None) -> None:
        """As `TritonServer.load_model`: overrides add up."""
        assert name == "cosine"
        assert config_override is not None
        self.loads.append(dict(config_override["parameters"]))
        if self.loads[-1]["policy"] != self.deaf_to:
            self.parameters |= self.loads[-1]
        self._forget()

    def stats(self) -> dict[str, Any]:
        """What `stats_request` answers."""
        slots = min(int(self.parameters["slots"]) or TARGET_SLOTS, TARGET_SLOTS)
        return FakeBenchServer().stats() | {
            "mode": self.parameters["mode"],
            "policy": self.parameters["policy"],
            "counters": self.counters,
            "scheduling": {
                "slots": slots,
                "max_batch": min(int(self.parameters["max_batch"]) or slots, slots),
                "preemptions": self.preemptions,
                "evictions": 0,
                "length_error": ERROR,
                "estimation_error": {"at_perceptible": ERROR, "at_arrival": ERROR, "num_never_perceptible": 0},
            },
        }

    def script(self, inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
        """The script of a `FakeTriton`."""
        if "stats_request" in inputs:
            yield response(stats=json.dumps(self.stats()))
        else:
            with self._turn:
                yield from self._generate(inputs)
        yield final()

    def _generate(self, inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
        (seed,), (limit,), policy = inputs["seed"], inputs["max_tokens"], self.parameters["policy"]
        assert isinstance(seed, int)
        assert isinstance(limit, int)
        self.served.append((policy, seed))
        length = min(1 + seed % 7, limit)
        self.preemptions += policy != "fcfs"
        self.counters["prefill_wall_ns"] += 1_000_000
        for start in (0, *range(1, length, 2)):
            count = min(2, length - start) if start else 1
            time.sleep(ROUND_S)
            is_last = start + count == length
            ids = [seed * 100 + at for at in range(start, start + count)]
            ids[-1] += is_last and policy == self.other_text_under
            self._book(count, start)
            last = {"finish_reason": "length" if length == limit else "stop", "num_input_tokens": 3, **PERF} if is_last else {}
            sources = (0, -1)[2 - count :]
            yield response(text_output="x" * count, output_ids=tuple(ids), token_sources=sources, num_output_tokens=count, **last)

    def _book(self, emitted: int, start: int) -> None:
        if start:
            step = {"rounds": 1, "verified_rows": 1, "emitted_tokens": emitted, "drafted": 1, "accepted": emitted - 1}
            for name, value in (step | {"draft_wall_ns": 200_000, "round_wall_ns": 1_000_000}).items():
                self.counters[name] += value
