"""What the simulator says of the blocks that were measured: of requests that arrive when they did and take the rounds that they took."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from drafthouse_load.schedule.measure import Block, Capacity, Measured, RoundCost
from drafthouse_load.schedule.requests import ServedRequest
from drafthouse_load.schedule.server import Reading
from drafthouse_load.simulate.costs import MeasuredCosts
from drafthouse_load.simulate.predict import MeasuredRequest, predict_latency

_NS_PER_S = 1e9
_NS_PER_MS = 1e6
# Departures that the client hears of together say nothing of what lay between them, and a prefill may have been shorter than the mean one.
_SHORTEST_NS = 1e6
_LARGEST_PREFILL = 0.5  # of a service with rounds


@dataclass(frozen=True, slots=True)
class SimulatedServer:
    """What the simulator has to be told about the server, beside what was measured."""

    slots: int
    starvation_limit_ms: int
    length_predictor: str
    max_tokens: int


def services_s(served: Sequence[ServedRequest]) -> dict[int, float]:
    """What each request took of a server that serves one at a time in order of arrival and never waits, by number.

    From the end of the one before (or its own arrival, if that was later) to its own end: departures that follow each other.
    """
    free_s, services = 0.0, {}
    for one in sorted(served, key=lambda one: one.ended_s):
        services[one.planned.number] = one.ended_s - max(free_s, one.due_s)
        free_s = one.ended_s
    return services


def capacity_costs(capacity: Capacity, costs: Sequence[RoundCost]) -> MeasuredCosts:
    """Rounds by their rows, a prompt's prefill at its mean, and per round what lay beside both while there was always more to do."""
    rounds = [(cost.rows, cost.reading) for cost in costs] or [(1, capacity.reading)]
    prefill_ns = costs[0].reading.prefill_wall_ns / costs[0].num_requests if costs else _prefill_ns(capacity.reading, capacity.served)
    counters = capacity.reading.counters
    wall_ns = _NS_PER_S * max(one.ended_s for one in capacity.served)
    between_ns = (wall_ns - counters.round_wall_ns - capacity.reading.prefill_wall_ns) / max(counters.rounds, 1)
    return MeasuredCosts(
        draft_ns_by_rows={rows: _draft_ns(reading) for rows, reading in rounds},
        verify_ns_by_rows={rows: _round_ns(reading) - _draft_ns(reading) for rows, reading in rounds},
        prefill_token_ns=0.0,  # the demo's prompts fit into one call, whose time hardly depends on them
        prefill_call_ns=prefill_ns,
        between_ns=max(between_ns, 0.0),
    )


def own_costs(table: MeasuredCosts, block: Block) -> MeasuredCosts:
    """The same, all rounds stretched alike so that rounds of this block's mean rows take what its mean round took."""
    counters = block.reading.counters
    if not counters.rounds:
        return table
    known, rows = sorted(table.draft_ns_by_rows), counters.verified_rows / counters.rounds
    expected_ns = np.interp(rows, known, [table.draft_ns_by_rows[count] + table.verify_ns_by_rows[count] for count in known])
    factor = _round_ns(block.reading) / float(expected_ns)
    return replace(
        table,
        draft_ns_by_rows={count: factor * own_ns for count, own_ns in table.draft_ns_by_rows.items()},
        verify_ns_by_rows={count: factor * own_ns for count, own_ns in table.verify_ns_by_rows.items()},
        prefill_call_ns=_prefill_ns(block.reading, block.served),
    )


def _prefill_ns(reading: Reading, served: Sequence[ServedRequest]) -> float:
    return reading.prefill_wall_ns / len(served)


def _round_ns(reading: Reading) -> float:
    return reading.counters.round_wall_ns / max(reading.counters.rounds, 1)


def _draft_ns(reading: Reading) -> float:
    """On the round's wall clock; with overlap part of it lies beside the verification."""
    return min(reading.counters.draft_wall_ns / max(reading.counters.rounds, 1), _round_ns(reading))


def forecast_s(measured: Measured, block: Block, server: SimulatedServer) -> list[float]:
    """Latency of each request in order of arrival, from the capacity run alone: its rounds, and their own times where they were not shared.

    Nothing of the block is used but its arrivals. A server that adapts its drafts may take other rounds under another load.
    """
    capacity = measured.capacity
    costs = capacity_costs(capacity, measured.costs)
    services = services_s(capacity.served) if capacity.max_batch == 1 else {}
    by_number = {one.planned.number: one for one in capacity.served}
    requests = [_request(by_number[one.planned.number], one.due_s, costs, services.get(one.planned.number)) for one in block.served]
    return _latencies_s(requests, costs, block, server)


def replayed_s(measured: Measured, block: Block, server: SimulatedServer) -> list[float]:
    """Latency of each request in order of arrival, from the rounds that this block itself took."""
    costs = own_costs(capacity_costs(measured.capacity, measured.costs), block)
    return _latencies_s([_request(one, one.due_s, costs, None) for one in block.served], costs, block, server)


def _request(one: ServedRequest, due_s: float, costs: MeasuredCosts, service_s: float | None) -> MeasuredRequest:
    rounds, prefill_ns = one.tokens_per_round, round(costs.prefill_call_ns)
    own_ns = None
    if service_s is not None:
        service_ns = max(service_s * _NS_PER_S, _SHORTEST_NS)
        prefill_ns = min(prefill_ns, round(service_ns * (_LARGEST_PREFILL if rounds else 1.0)))
        own_ns = [round((service_ns - prefill_ns) / len(rounds))] * len(rounds) if rounds else []
    return MeasuredRequest(
        arrival_ns=round(due_s * _NS_PER_S),
        prompt_len=one.completion.num_input_tokens or 1,
        domain=one.planned.domain,
        tokens_per_round=rounds,
        drafted_per_round=one.drafted_per_round,
        prefill_ns=prefill_ns,
        round_ns=own_ns,
    )


def _latencies_s(requests: Sequence[MeasuredRequest], costs: MeasuredCosts, block: Block, server: SimulatedServer) -> list[float]:
    figures = predict_latency(
        requests,
        costs,
        policy=block.policy,
        batch=block.max_batch,
        slots=server.slots,
        starvation_limit_ns=round(server.starvation_limit_ms * _NS_PER_MS),
        length_predictor=server.length_predictor,
        max_tokens=server.max_tokens,
    )
    return [float(latency_ms) / 1e3 for latency_ms in figures.latency]
