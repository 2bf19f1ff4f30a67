"""The simulated server: hand-made cases, and what must hold under every policy."""

from dataclasses import replace

import numpy as np
import pytest

from drafthouse_load.simulate.compare import NO_PROGRESS, POLICY_NAMES, PREDICTOR_NAMES, run_policy
from drafthouse_load.simulate.costs import GivenCosts
from drafthouse_load.simulate.figures import PolicyFigures, mean_interval, mean_ratio
from drafthouse_load.simulate.noisy import LEAST_READ_SIGMA, NoisyLengths
from drafthouse_load.simulate.request import SimulatedRequest
from drafthouse_load.simulate.settings import Experiment, SimulateSettings, experiment
from drafthouse_load.simulate.single_server import fcfs, srpt
from drafthouse_load.simulate.workload import Workload

COSTS = GivenCosts(draft_token=0.0, row_growth=0.0, prefill_tokens=100)
UNIT_NS = int(COSTS.unit_ns)
SETTINGS = SimulateSettings(tuple(POLICY_NAMES), num_requests=400, seed=1, mean_length=30.0)


def by_hand(arrivals: list[float], rounds: list[int], prompt_len: int = 100) -> Workload:
    """Requests of as many rounds that bring one token each, at times in verifications."""
    count = len(rounds)
    return Workload(
        np.array([round(at * UNIT_NS) for at in arrivals]),
        np.full(count, prompt_len),
        1 + np.array(rounds),
        np.zeros(count),
        bytes(sum(rounds)),
        np.concatenate([[0], np.cumsum(rounds)]),
        num_draft_tokens=5,
    )


def serve(policy: str, workload: Workload, **changes: object) -> PolicyFigures:
    settings = replace(SimulateSettings((policy,), len(workload), length_error=0.0, starvation_services=1e6), **changes)  # type: ignore[arg-type]
    return run_policy(policy, Experiment(settings, workload, COSTS), NO_PROGRESS)


def test_one_request_is_prefilled_then_verified() -> None:
    found = serve("fcfs", by_hand([0.0, 100.0], [3, 2], prompt_len=250))
    assert found.ttft == pytest.approx([2.5, 2.5])
    assert found.latency == pytest.approx([5.5, 4.5])
    assert found.makespan == pytest.approx(104.5)
    assert found.busy_share == pytest.approx(10 / 104.5)


def test_first_come_first_served_by_hand() -> None:
    found = serve("fcfs", by_hand([0.0, 1.0, 2.0], [9, 4, 1]))
    assert found.latency == pytest.approx([10.0, 14.0, 15.0])
    assert found.preemptions == 0


def test_the_oracle_lets_shorter_ones_pass_between_rounds() -> None:
    found = serve("oracle", by_hand([0.0, 1.5, 2.5], [9, 4, 1]))
    # The second one starts at 2 (a round is never interrupted), the third at 4: with its prefill the second one's first round came too.
    assert found.latency == pytest.approx([17.0, 7.5 - 0.0, 3.5])
    assert found.preemptions == 2


def test_a_round_serves_as_many_as_the_batch_takes() -> None:
    found = serve("fcfs", by_hand([0.0, 0.0, 0.0], [2, 2, 2]), batch=2)
    assert found.latency[:2] == pytest.approx([4.0, 4.0])  # two prefills, one after the other, then two rounds together
    assert found.latency[2] == pytest.approx(4.0 + 3.0)
    assert found.rows_mean == pytest.approx(4 / 3, abs=0.4)


def test_overdue_requests_get_their_turn() -> None:
    arrivals, rounds = [0.0] + [float(at) for at in range(0, 400, 2)], [60] + [1] * 200
    workload = by_hand(arrivals, rounds)
    patient, impatient = (serve("oracle", workload, starvation_services=limit) for limit in (1e6, 10.0))
    assert impatient.ttft[0] < 40 < patient.ttft[0]


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_policy_does_all_the_work_and_no_more(policy: str) -> None:
    own = experiment(SETTINGS, None, COSTS)
    found = run_policy(policy, own, NO_PROGRESS)
    assert (found.latency >= found.service - 1e-6).all()
    assert (found.ttft <= found.latency).all()
    assert found.busy_share * found.makespan == pytest.approx(found.service.sum())  # common random numbers: the same rounds for everybody
    assert found.recomputed_tokens == found.evictions == 0
    assert found.row()["completed"] == 400


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_with_few_slots_caches_are_given_up_and_nothing_is_lost(policy: str) -> None:
    own = experiment(replace(SETTINGS, slots=4, batch=2, load=0.95), None, COSTS)
    found = run_policy(policy, own, NO_PROGRESS)
    assert found.row()["completed"] == 400
    assert (found.evictions > 0) == (found.recomputed_tokens > 0)
    if policy == "fcfs":
        assert found.evictions == 0


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("load", [0.9, 1.3])
def test_as_many_places_as_slots_and_ageing_that_binds_waste_little(policy: str, load: float) -> None:
    """Where everybody is overdue, and where nobody gets a slot but from somebody else."""
    own = experiment(replace(SETTINGS, slots=2, batch=2, load=load, starvation_services=3.0), None, COSTS)
    found, fcfs = (run_policy(name, own, NO_PROGRESS) for name in (policy, "fcfs"))
    assert found.row()["completed"] == 400
    assert found.makespan <= 1.02 * fcfs.makespan
    assert found.latency_mean <= 1.1 * fcfs.latency_mean


def test_the_oracle_is_best_at_batch_1() -> None:
    own = experiment(SETTINGS, None, COSTS)
    means = {name: run_policy(name, own, NO_PROGRESS).latency_mean for name in POLICY_NAMES}
    assert min(means, key=lambda name: means[name]) == "oracle"


@pytest.mark.parametrize("predictor", PREDICTOR_NAMES)
def test_every_length_predictor_serves_and_reports_its_error(predictor: str) -> None:
    own = experiment(replace(SETTINGS, length_predictor=predictor), None, COSTS)
    row = run_policy("sjf", own, NO_PROGRESS).row()
    assert row["completed"] == 400
    assert isinstance(row["length_error"], float)
    assert 0 < row["length_error"] < 3


def test_errors_of_estimated_times_are_reported_with_whom_they_cover() -> None:
    """Perceptible are those that ran long enough; of the others only what was estimated at arrival is known."""
    own = experiment(replace(SETTINGS, num_requests=2000, mean_length=60.0), None, COSTS)
    known, disturbed = (
        run_policy("fcfs", replace(own, settings=replace(own.settings, length_error=error)), NO_PROGRESS) for error in (0, 0.5)
    )
    errors, worse = known.row(), disturbed.row()
    for row in (errors, worse):
        assert 0.5 < float(str(row["estimation_covered_share"])) < 1
    assert known.estimation.at_perceptible.relative < known.estimation.at_arrival.relative  # it has learned how much is accepted
    assert disturbed.estimation.at_perceptible.relative > 2 * known.estimation.at_perceptible.relative  # wrong lengths outweigh that
    assert errors["estimation_error"] == round(known.estimation.at_perceptible.relative, 4)
    assert errors["estimation_error_at_arrival"] == round(known.estimation.at_arrival.relative, 4)


def test_who_ends_too_soon_to_become_perceptible_is_counted_and_not_left_out() -> None:
    row = serve("fcfs", by_hand([float(at) for at in range(200)], [1] * 200)).row()
    assert (row["estimation_error"], row["estimation_covered_share"]) == (None, 0.0)
    assert isinstance(row["estimation_error_at_arrival"], float)


def test_estimated_srpt_goes_by_the_estimate_alone() -> None:
    """Two of nearly the same length: each change of what is estimated changes who runs, where `laps-sd` asks for a clear difference."""
    workload = by_hand([0.0, 1.5], [40, 36])
    assert serve("srpt-estimated", workload).preemptions > serve("laps-sd", workload).preemptions > 0


def test_progress_is_told_of_every_request() -> None:
    told = list[int]()
    run_policy("fcfs", experiment(SETTINGS, None, COSTS), told.append)
    assert sum(told) == 400


def test_noise_disturbs_predictions_as_stated() -> None:
    own = experiment(replace(SETTINGS, num_requests=5000, lengths="lognormal"), None, COSTS).workload
    lengths = NoisyLengths(own, LEAST_READ_SIGMA / 2)  # so small that it is taken as it is
    predicted = np.array([lengths.predict_remaining(SimulatedRequest(index, own, 1 << 20)) for index in range(5000)])
    logs = np.log(predicted / own.output_len)[predicted > 1]
    assert logs.std() == pytest.approx(LEAST_READ_SIGMA / 2, rel=0.05)
    assert logs.mean() == pytest.approx(0.0, abs=0.002)


def test_without_noise_lengths_are_known_and_what_outlived_its_prediction_is_expected_to_go_on() -> None:
    own = replace(by_hand([0.0, 1.0], [99, 99]), length_noise=np.array([0.0, -2.0]))
    request = SimulatedRequest(0, own, 1 << 20)
    request.num_output_tokens = 60
    assert NoisyLengths(own, 0.0).predict_remaining(request) == pytest.approx(40.0)
    late = SimulatedRequest(1, own, 1 << 20)
    noisy = NoisyLengths(own, 0.5)  # predicts 100 / e
    late.num_output_tokens = 90
    assert noisy.predict_remaining(late) > 10 > 100 / np.e - 90
    noisy.observe(late, True)
    assert noisy.error().num_requests == 0  # nobody asked at its arrival


def test_intervals_cover_what_is_known() -> None:
    rng = np.random.default_rng(4)
    own, other = rng.exponential(2.0, 20_000), rng.exponential(4.0, 20_000)
    low, high = mean_interval(own)
    assert low < 2.0 < high < 1.1 * low
    ratio, lowest, highest = mean_ratio(own, other)
    assert lowest < 0.5 < highest
    assert ratio == pytest.approx(0.5, rel=0.05)


def test_a_limit_of_verified_tokens_is_kept_by_assignment() -> None:
    own = experiment(replace(SETTINGS, batch=4, load=0.6), None, COSTS)
    limited = replace(own, settings=replace(own.settings, max_verified_tokens=12))  # of 24 that four rows with five draft tokens have
    free, tight = (run_policy("fcfs", one, NO_PROGRESS) for one in (own, limited))
    assert tight.row()["completed"] == 400
    assert tight.latency_mean > free.latency_mean
    assert tight.busy_share * tight.makespan > free.busy_share * free.makespan  # shorter drafts, more rounds


@pytest.mark.parametrize("load", [0.5, 0.9])
def test_rounds_agree_with_the_work_level_simulation(load: float) -> None:
    """`single_server`, which `test_simulate_theory` holds to closed forms, on the same arrivals and services."""
    own = experiment(replace(SETTINGS, num_requests=3000, load=load, starvation_services=1e6), None, COSTS)
    arrivals, services = own.workload.arrival_ns.astype(float), own.workload.service_ns(COSTS, 1)
    first, shortest = (run_policy(name, own, NO_PROGRESS).latency for name in ("fcfs", "oracle"))
    assert first == pytest.approx(fcfs(arrivals, services) / UNIT_NS)
    # A round and a prefill are not interrupted: a little is lost to that.
    bound = float(srpt(arrivals, services).mean()) / UNIT_NS
    assert bound <= shortest.mean() < 1.1 * bound
