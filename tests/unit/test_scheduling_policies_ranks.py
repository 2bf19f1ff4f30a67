"""What each policy ranks by."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from drafthouse.scheduling.policies.laps_sd import LapsSd, LapsSdOptions
from drafthouse.scheduling.policies.las import LasOptions, LeastAttainedService
from drafthouse.scheduling.policies.mlfq import MlfqOptions, SkipJoinMlfq
from drafthouse.scheduling.policies.sjf import ShortestJobFirst
from drafthouse.scheduling.policies.srpt_limited import LimitedSrpt, SrptLimitedOptions
from drafthouse.scheduling.policy import Policy, Rank, Schedulable
from fakes.estimated_request import EstimatedRequest

ROUND_NS = 20


@dataclass
class Foretold:
    """Estimates that tests set, by request_uid: ``tokens`` in all, rounds left."""

    tokens: dict[int, float] = field(default_factory=dict)
    rounds_left: dict[int, float] = field(default_factory=dict)
    perceptible: set[int] = field(default_factory=set)
    round_ns: float = ROUND_NS
    prefill_token_ns: float = 1.0
    rows_per_round: float = 1.0

    def remaining_tokens(self, request: Schedulable) -> float:
        return max(1.0, self.tokens[request.request_uid] - request.num_output_tokens)

    def total_tokens(self, request: Schedulable) -> float:
        return request.num_output_tokens + self.remaining_tokens(request)

    def remaining_ns(self, request: Schedulable) -> float:
        return self.rounds_left[request.request_uid] * ROUND_NS

    def is_perceptible(self, request: Schedulable) -> bool:
        return request.request_uid in self.perceptible


def preempts(policy: Policy, challenger: Rank, running: Rank) -> bool:
    """As the queue asks: only for a better rank."""
    return challenger < running and policy.may_preempt(challenger, running)


def test_sjf_ranks_by_the_whole_length_whatever_is_done() -> None:
    policy = ShortestJobFirst(Foretold({1: 50, 2: 40}))
    assert policy.rank(EstimatedRequest(2)) < policy.rank(EstimatedRequest(1))
    assert policy.rank(EstimatedRequest(1, num_output_tokens=20)) == policy.rank(EstimatedRequest(1))


def test_las_levels_are_fractions_of_a_doubling_at_any_scale() -> None:
    policy = LeastAttainedService(Foretold(), LasOptions(levels_per_doubling=2))
    levels = [policy.queue_of(EstimatedRequest(1, attained_ns=rounds * ROUND_NS)) for rounds in (0, 1, 2, 4, 8, 16, 1024)]
    assert levels == [0, 0, 2, 4, 6, 8, 20]
    slower = LeastAttainedService(Foretold(round_ns=1000 * ROUND_NS), LasOptions(levels_per_doubling=2))
    assert slower.queue_of(EstimatedRequest(1, attained_ns=16 * 1000 * ROUND_NS)) == 8
    ahead, behind = (policy.rank(EstimatedRequest(1, attained_ns=rounds * ROUND_NS)) for rounds in (10, 13))
    assert preempts(policy, ahead, behind)
    assert not preempts(policy, *(policy.rank(EstimatedRequest(1, attained_ns=rounds * ROUND_NS)) for rounds in (13, 15)))


def test_mlfq_joins_the_queue_whose_quantum_the_first_iteration_fits_into() -> None:
    policy = SkipJoinMlfq(Foretold(), MlfqOptions(num_queues=6))
    joined = {prompt: policy.queue_of(EstimatedRequest(1, prompt_len=prompt)) for prompt in (1, 20, 21, 40, 41, 160, 161, 10_000)}
    assert joined == {1: 0, 20: 0, 21: 1, 40: 1, 41: 2, 160: 3, 161: 4, 10_000: 5}


def test_mlfq_demotes_by_the_quantum_of_each_queue_from_where_it_joined() -> None:
    policy = SkipJoinMlfq(Foretold(), MlfqOptions(num_queues=5))

    def queues(prompt_len: int, *rounds: int) -> list[int]:
        return [policy.queue_of(EstimatedRequest(1, prompt_len=prompt_len, attained_ns=count * ROUND_NS)) for count in rounds]

    assert queues(1, 0, 1, 2, 3, 6, 7, 14, 15, 500) == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert queues(41, 0, 3, 4, 11, 12, 500) == [2, 2, 3, 3, 4, 4]
    first, second = ((float(queue),) for queue in queues(1, 0, 1))
    assert preempts(policy, first, second)


def test_srpt_limited_shields_who_has_done_its_part() -> None:
    policy = LimitedSrpt(Foretold({1: 100, 2: 10, 3: 300}), SrptLimitedOptions(preemptible_part=0.5))
    short = policy.rank(EstimatedRequest(2))
    begun, beyond = (policy.rank(EstimatedRequest(1, num_output_tokens=done)) for done in (49, 50))
    assert preempts(policy, short, begun)
    assert beyond < short, "it runs to its end"
    assert not policy.may_preempt((float("-inf"),) * 2, beyond), "nobody takes its place, not even who is overdue"
    assert preempts(policy, begun, policy.rank(EstimatedRequest(3)))
    everything = LimitedSrpt(Foretold({1: 100}), SrptLimitedOptions(preemptible_part=0.0))
    assert everything.rank(EstimatedRequest(1)) == (1.0, 100.0), "who has not begun has nothing to shield"


def test_laps_sd_non_perceptible_requests_sink_with_each_threshold_of_attained_service() -> None:
    options = LapsSdOptions(num_queues=5, first_threshold_rounds=4, threshold_ratio=2)
    estimates = Foretold(rounds_left={1: 1})
    policy = LapsSd(estimates, options)
    attained = (0, 3, 4, 7, 8, 15, 16, 32, 5000)
    assert [policy.queue_of(EstimatedRequest(1, num_verifications=count)) for count in attained] == [0, 0, 1, 1, 2, 2, 3, 4, 4]
    estimates.perceptible.add(1)
    assert {policy.queue_of(EstimatedRequest(1, num_verifications=count)) for count in attained} == {0}
    estimates.perceptible.clear()
    assert policy.queue_of(EstimatedRequest(1, num_verifications=8)) == 2, "back, when its acceptance moved"


def test_laps_sd_orders_by_queue_then_by_remaining_time() -> None:
    policy = LapsSd(Foretold(rounds_left={1: 3, 2: 2, 3: 5, 4: 1, 5: 200}, perceptible={1, 3}))
    ranks = {uid: policy.rank(EstimatedRequest(uid, num_verifications=20 if uid == 4 else 0)) for uid in range(1, 6)}
    assert sorted(ranks, key=ranks.__getitem__) == [2, 1, 3, 4, 5], "4 has had 20 rounds and is no nearer to being known"
    assert [policy.queue_of(EstimatedRequest(uid)) for uid in (1, 5)] == [0, 6], "who is expected to be long does not join the highest"


def test_laps_sd_counts_a_shared_round_for_its_share_and_a_prefill_in_full() -> None:
    estimates = Foretold(rounds_left={1: 7, 2: 6})  # of 2, five rounds' time is its prefill
    policy = LapsSd(estimates)
    decoding, new = EstimatedRequest(1), EstimatedRequest(2, num_uncached=101)
    assert policy.rank(new) < policy.rank(decoding)
    estimates.rows_per_round = 4.0
    assert policy.rank(decoding)[1] == 7 * ROUND_NS / 4
    assert policy.rank(new)[1] == 5 * ROUND_NS + ROUND_NS / 4
    decoding.num_verifications = 60
    assert policy.queue_of(decoding) == 2, "15 rounds' worth: attained service is a share, too"


def test_laps_sd_preempts_across_queues_and_within_one_by_the_hysteresis() -> None:
    policy = LapsSd(Foretold(), LapsSdOptions(hysteresis=0.25))
    assert preempts(policy, (0.0, 79.0), (1.0, 81.0))
    assert preempts(policy, (1.0, 90.0), (1.0, 120.0))
    assert not preempts(policy, (1.0, 91.0), (1.0, 120.0))
    assert policy.may_preempt((float("-inf"),) * 2, (0.0, 0.0))


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (LasOptions, {"levels_per_doubling": 0}, "levels_per_doubling must be at least 1, not 0"),
        (MlfqOptions, {"num_queues": 0}, "num_queues must be at least 1, not 0"),
        (MlfqOptions, {"quantum_rounds": 0.0}, "quantum_rounds must be above 0, not 0.0"),
        (MlfqOptions, {"quantum_ratio": 0.5}, "quantum_ratio must be at least 1, not 0.5"),
        (SrptLimitedOptions, {"preemptible_part": 1.5}, r"preemptible_part must lie in \[0, 1\], not 1.5"),
        (LapsSdOptions, {"num_queues": 0}, "num_queues must be at least 1, not 0"),
        (LapsSdOptions, {"first_threshold_rounds": 0.0}, "first_threshold_rounds must be above 0, not 0.0"),
        (LapsSdOptions, {"threshold_ratio": 1.0}, "threshold_ratio must be above 1, not 1.0"),
        (LapsSdOptions, {"hysteresis": 1.0}, r"hysteresis must lie in \[0, 1\), not 1.0"),
    ],
)
def test_options_out_of_range_are_refused(options: Any, values: dict[str, float], message: str) -> None:  # noqa: ANN401 - four classes
    with pytest.raises(ValueError, match=message):
        options(**values)
