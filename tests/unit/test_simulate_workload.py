"""Requests to be simulated: traces, lengths, rounds drawn before, load offered exactly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drafthouse.core.errors import ClientError
from drafthouse_load.replay.costs import EngineCosts, HopCost, HopCosts, StageProfile
from drafthouse_load.simulate.costs import GivenCosts, MeasuredCosts, ProfileCosts
from drafthouse_load.simulate.lengths import DISTRIBUTIONS
from drafthouse_load.simulate.settings import FROM_TRACE, SimulateSettings, experiment
from drafthouse_load.simulate.trace import read_trace
from drafthouse_load.simulate.workload import draw_rounds

TRACE = Path(__file__).parents[1] / "data" / "made_up_trace.csv"
COSTS = GivenCosts()
SETTINGS = SimulateSettings(("fcfs",), num_requests=2000, seed=5)


def test_a_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:05,7,8\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.5,3,1\n"
    )
    trace = read_trace(file)
    assert trace.arrival_s == pytest.approx([0.0, 0.52004, 1.02004])
    assert trace.prompt_len.tolist() == [4808, 3, 7]
    assert trace.output_len.tolist() == [10, 1, 8]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "TIMESTAMP,ContextTokens\n2023-11-16 18:17:05,7\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:05,7,8\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:05,7,8\nyesterday,7,8\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:05,7,8\n2023-11-16 18:17:05,7\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:05,7,8\n2023-11-16 18:17:05,7,0\n",
    ],
)
def test_what_is_no_trace_is_refused_by_name(text: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(ClientError, match=r"INVALID_ARG field=--trace value='.*trace\.csv"):
        read_trace(file)


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="field=--trace"):
        read_trace(tmp_path / "none.csv")


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_made_up_lengths_have_mean_one(name: str) -> None:
    sizes = DISTRIBUTIONS[name](200_000, np.random.default_rng(0))
    assert sizes.min() > 0
    assert sizes.mean() == pytest.approx(1.0, abs=5 * sizes.std() / len(sizes) ** 0.5)


def test_rounds_bring_a_truncated_geometric_number_of_tokens() -> None:
    chance, drafts = 0.6, 5
    accepted, first = draw_rounds(np.full(500, 400), np.full(500, chance), drafts, np.random.default_rng(1))
    drawn = np.frombuffer(accepted, np.uint8)
    expected = (1 - chance ** (drafts + 1)) / (1 - chance)  # papers.md: tokens of a round
    assert first[-1] == len(drawn)
    assert drawn.max() == drafts
    assert 1 + drawn.mean() == pytest.approx(expected, rel=0.01)


def test_a_request_takes_the_rounds_until_its_tokens_are_there() -> None:
    wanted = np.array([0, 1, 7, 300])
    accepted, first = draw_rounds(wanted, np.array([0.5, 0.5, 0.9, 0.2]), 3, np.random.default_rng(2))
    for tokens, start, end in zip(wanted.tolist(), first[:-1].tolist(), first[1:].tolist(), strict=True):
        emitted = [1 + count for count in accepted[start:end]]
        assert sum(emitted) >= tokens
        assert sum(emitted[:-1]) < max(tokens, 1)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("load", [0.3, 0.95])
def test_the_load_is_offered_exactly_by_the_same_requests(batch: int, load: float) -> None:
    own = experiment(replace(SETTINGS, batch=batch, load=load), None, COSTS)
    other = experiment(replace(SETTINGS, batch=1, load=0.5), None, COSTS)
    assert own.workload.service_ns(COSTS, batch).sum() / own.workload.arrival_ns[-1] == pytest.approx(load, rel=1e-9)
    assert own.workload.accepted == other.workload.accepted
    gaps, other_gaps = np.diff(own.workload.arrival_ns), np.diff(other.workload.arrival_ns)
    assert gaps / gaps.mean() == pytest.approx(other_gaps / other_gaps.mean(), abs=1e-3)


def test_poisson_arrivals_of_lengths_from_a_trace() -> None:
    trace = read_trace(TRACE)
    own = experiment(replace(SETTINGS, lengths="trace", length_scale=8.0), trace, COSTS).workload
    gaps = np.diff(own.arrival_ns)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.1)
    assert set(own.output_len.tolist()) <= set((8 * trace.output_len).tolist())


def test_arrivals_from_a_trace_keep_its_bursts_and_its_order() -> None:
    trace = read_trace(TRACE)
    own = experiment(replace(SETTINGS, lengths="trace", arrivals=FROM_TRACE), trace, COSTS).workload
    assert own.output_len[: len(trace)].tolist() == trace.output_len.tolist()
    first = own.arrival_ns[: len(trace)].astype(float)
    assert first / first[-1] == pytest.approx(trace.arrival_s / trace.arrival_s[-1], abs=1e-6)
    assert (np.diff(own.arrival_ns) >= 0).all()


def test_given_costs_count_in_verifications() -> None:
    costs = GivenCosts(draft_token=0.1, row_growth=0.25, prefill_tokens=100)
    assert costs.verify_ns(1, 6) == costs.unit_ns
    assert costs.verify_ns(3, 18) == 1.5 * costs.unit_ns
    assert costs.draft_ns(1, 5) == 0.5 * costs.unit_ns
    assert [costs.prefill_ns(count) / costs.unit_ns for count in (1, 100, 250)] == [1.0, 1.0, 2.5]
    assert GivenCosts(prefill_tokens=0).prefill_ns(5000) == 0


def test_profile_costs_add_engines_and_messages() -> None:
    hop = HopCost(0.5)
    engine = EngineCosts(2, {(1, 1): 2.0, (1, 64): 66.0, (4, 1): 5.0, (4, 64): 70.0}, 0.0, 0.25, 0.0, 0.0)
    costs = ProfileCosts(StageProfile({"target": engine, "code": engine}, HopCosts(hop, hop, hop, hop, hop, hop), "by hand"), "code")
    assert costs.prefill_ns(64) == round(1e6 * (66.0 + 0.25 + 2 * 0.5))
    assert costs.prefill_ns(128) == 2 * costs.prefill_ns(64)
    assert costs.draft_ns(1, 3) == round(1e6 * (3 * 2.0 + 0.25 + 3 * 0.5))
    assert costs.draft_ns(4, 0) == 0
    assert costs.verify_ns(4, 4) == round(1e6 * (5.0 + 0.25 + 2 * 0.5))


def test_measured_costs_lie_between_what_was_measured() -> None:
    costs = MeasuredCosts({1: 5.0, 4: 8.0}, {1: 10.0, 4: 40.0}, prefill_token_ns=2.0, prefill_call_ns=100.0, between_ns=1.0)
    assert costs.draft_ns(2, 5) == 6
    assert costs.verify_ns(2, 12) == 21
    assert costs.verify_ns(9, 54) == 41
    assert costs.prefill_ns(50) == 200
