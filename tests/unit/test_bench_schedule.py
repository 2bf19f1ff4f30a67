"""`drafthouse bench schedule` without a real server: rounds, services, figures, replay, the order of work, the report."""

import argparse
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from drafthouse.core.errors import ClientError, ServerError
from drafthouse.scheduling.policies.registry import POLICIES
from drafthouse_client import Client, Completion
from drafthouse_load.bench import parser
from drafthouse_load.prompts import DomainPrompt
from drafthouse_load.schedule import command
from drafthouse_load.schedule.figures import PolicySample, differing_texts, length_figures, picks, ratio, row, samples_of
from drafthouse_load.schedule.measure import Block, Capacity, Measured, RoundCost, ScheduleBench
from drafthouse_load.schedule.options import ScheduleSettings, read_settings
from drafthouse_load.schedule.predict import SimulatedServer, capacity_costs, forecast_s, own_costs, replayed_s, services_s
from drafthouse_load.schedule.report import schedule_report, schedule_table, write_schedule_plot
from drafthouse_load.schedule.requests import PlannedRequest, ServedRequest, plan_requests, rounds_of
from drafthouse_load.schedule.server import Errors, Reading, ScheduleServer, scheduling_parameters
from drafthouse_load.stats import Counters
from fakes.schedule_server import ERROR, FakeScheduleServer
from fakes.triton_grpc import FakeTriton, serving

QUIET = Console(file=io.StringIO(), width=80)
PROMPTS = [DomainPrompt(domain, f"{domain} {number}") for number in range(3) for domain in ("code", "math")]
SETTINGS = ScheduleSettings(("fcfs", "laps-sd"), max_batch=(1,), requests=8, blocks=2, warmup=2, max_tokens=6)
SERVER = SimulatedServer(slots=8, starvation_limit_ms=30_000, length_predictor="histogram", max_tokens=9)
MS = 1_000_000


def completion(num_tokens: int, number: int = 0, reason: str = "stop") -> Completion:
    """The prefill's token, then rounds of two."""
    sources = (-1, *([0, -1] * num_tokens)[: num_tokens - 1])
    return Completion("x" * num_tokens, tuple(range(number, number + num_tokens)), sources, num_tokens, 3, (), reason, None, 0.0)


def served(number: int, due_s: float, ended_s: float, num_tokens: int = 5, domain: str = "code") -> ServedRequest:
    planned = PlannedRequest(number, domain, "p")
    first_s = (due_s + ended_s) / 2
    return ServedRequest(planned, due_s, due_s + 0.001, (first_s, ended_s), (1, num_tokens - 1), completion(num_tokens, number))


def reading(rounds: int = 10, rows: int = 10, round_ns: int = 2 * MS, preemptions: int = 0) -> Reading:
    counters = Counters(
        rounds=rounds,
        verified_rows=rows,
        emitted_tokens=2 * rows,
        drafted=2 * rows,
        accepted=rows,
        draft_wall_ns=rounds * MS // 2,
        round_wall_ns=rounds * round_ns,
    )
    return Reading(counters, prefill_wall_ns=5 * MS, recomputed_tokens=4, preemptions=preemptions, evictions=1)


def block(policy: str, *requests: ServedRequest, own: Reading | None = None, max_batch: int = 1, load: float = 0.9) -> Block:
    return Block(policy, max_batch, load, requests, own or reading(), Errors(ERROR, {"at_perceptible": ERROR}))


@pytest.mark.parametrize(
    ("sources", "rounds"),
    [
        ((), ()),
        ((-1,), ()),
        ((-1, -1, -1), (1, 1)),
        ((-1, 0, 1, -1, 0, -1), (3, 2)),
        ((-1, 0, -1, 2, 2), (2, 2)),  # ended among accepted draft tokens
    ],
)
def test_rounds_are_read_off_the_sources(sources: tuple[int, ...], rounds: tuple[int, ...]) -> None:
    assert rounds_of(sources) == rounds


def test_drafted_tokens_are_spread_over_the_rounds() -> None:
    one = served(0, 0.0, 1.0, num_tokens=7)
    assert one.drafted_per_round == (0, 0, 0)
    perf: Any = type("Perf", (), {"total_draft_tokens": 8})()
    assert replace(one, completion=replace(one.completion, perf=perf)).drafted_per_round == (2, 3, 3)


def test_planned_requests_use_every_prompt_equally_often() -> None:
    planned = plan_requests(PROMPTS, 12, 5, np.random.default_rng(0))
    assert [one.number for one in planned] == list(range(5, 17))
    assert sorted(one.prompt for one in planned) == sorted([prompt.prompt for prompt in PROMPTS] * 2)
    assert planned == plan_requests(PROMPTS, 12, 5, np.random.default_rng(0))


def test_services_are_the_times_between_departures() -> None:
    answers = [served(0, 0.0, 2.0), served(2, 0.2, 4.5), served(1, 0.1, 3.0), served(3, 6.0, 7.0)]
    assert services_s(answers) == pytest.approx({0: 2.0, 1: 1.0, 2: 1.5, 3: 1.0})


def test_capacity_counts_what_was_done_while_there_was_more_to_do() -> None:
    # Two at once: 0 and 1, then 2. When 2 has its first token the server stops being full: 1 + 4 + 1 + 4 + 1 tokens by then.
    own = [served(0, 0.0, 2.0), served(1, 0.0, 4.0), served(2, 0.0, 10.0)]
    capacity = Capacity(2, tuple(own), reading())
    assert capacity.tokens_per_s == pytest.approx(11 / 5)
    assert capacity.requests_per_s == pytest.approx(11 / 25)


def test_a_row_of_the_report() -> None:
    blocks = (
        block("las", served(2, 0.0, 2.0), served(3, 1.0, 2.0, domain="math"), own=reading(preemptions=3)),
        block("las", served(0, 0.0, 1.0), served(1, 0.0, 4.0)),
    )
    (sample,) = samples_of(blocks)
    own = row(sample)
    assert [one.planned.number for one in sample.served] == [0, 1, 2, 3], "by block, whatever the order in which they were measured"
    assert (own["policy"], own["max_batch"], own["load"], own["requests"]) == ("las", 1, 0.9, 4)
    assert own["latency_mean"] == pytest.approx(2000.0)
    assert own["latency_p50"] == pytest.approx(1500.0)
    assert own["ttft_mean"] == pytest.approx(1000.0)
    assert (own["completed_tokens"], own["makespan_s"]) == (20, 6.0)
    assert (own["preemptions"], own["evictions"], own["recomputed_tokens"], own["estimation_error"]) == (3, 2, 8, 0.25)
    assert (own["round_ms"], own["rows_per_round"], own["tokens_per_verification"]) == (2.0, 1.0, 2.0)
    assert own["latency_mean_by_domain"] == {"code": pytest.approx(7000 / 3, abs=1e-3), "math": 1000.0}
    assert own["sent_late_ms_max"] == pytest.approx(1.0)


def sample(policy: str, latencies_s: np.ndarray[Any, np.dtype[np.float64]]) -> PolicySample:
    answers = [served(number, float(number), float(number + latency_s)) for number, latency_s in enumerate(latencies_s)]
    return PolicySample((policy, 1, 0.9), (block(policy, *answers),))


def test_ratios_are_paired_and_resample_neighbours_together() -> None:
    latencies_s = np.random.default_rng(0).uniform(1, 9, 100)
    half = ratio(sample("las", latencies_s / 2), sample("fcfs", latencies_s))
    assert (half["latency_mean"], half["latency_mean_ci95"], half["latency_p99"]) == (0.5, [0.5, 0.5], 0.5)
    noisy: Any = ratio(sample("las", latencies_s[::-1]), sample("fcfs", latencies_s))
    assert noisy["latency_mean_ci95"][0] < noisy["latency_mean"] == 1.0 < noisy["latency_mean_ci95"][1]
    chosen = picks(100)
    assert chosen.shape == (2000, 100)
    assert np.all((np.diff(chosen[:, :20], axis=1) % 100) == 1)
    assert picks(3).shape == (2000, 3)


def test_texts_are_compared_with_the_reference() -> None:
    reference = [served(0, 0.0, 1.0), served(1, 0.0, 1.0)]
    other = replace(reference[1], completion=replace(reference[1].completion, text="y"))
    blocks = [block("fcfs", *reference), block("las", reference[0], other)]
    assert differing_texts(reference, blocks) == {"fcfs": [], "las": [1]}


def test_lengths_say_how_many_texts_ended_by_themselves() -> None:
    capped = served(1, 0.0, 1.0, num_tokens=9, domain="math")
    own: Any = length_figures([served(0, 0.0, 1.0, num_tokens=3), replace(capped, completion=completion(9, reason="length"))])
    assert (own["mean"], own["max"], own["ended_by_themselves"]) == (6.0, 9, 0.5)
    assert own["by_domain"]["math"]["ended_by_themselves"] == 0.0


def alone(num_requests: int) -> Measured:
    """One at a time, all there from the start: 1 ms of prefill and rounds of 10 ms, of which 8 the pipeline's own count."""
    lengths = [1 + 2 * (number % 4) for number in range(num_requests)]
    ends_s = np.cumsum([0.001 + 0.01 * (length // 2) for length in lengths])
    answers = tuple(
        served(number, 0.0, float(end_s), num_tokens=length) for number, (end_s, length) in enumerate(zip(ends_s, lengths, strict=True))
    )
    rounds = sum(length // 2 for length in lengths)
    counters = Counters(rounds=rounds, verified_rows=rounds, draft_wall_ns=rounds * 2 * MS, round_wall_ns=rounds * 8 * MS)
    return Measured(Capacity(1, answers, Reading(counters, num_requests * MS, 0, 0, 0)), (), ())


def test_costs_of_the_capacity_run_add_up_to_its_time() -> None:
    costs = capacity_costs(alone(8).capacity, ())
    assert costs.prefill_ns(3) == MS
    assert (costs.draft_ns(1, 5), costs.verify_ns(1, 6)) == pytest.approx((2 * MS, 8 * MS))


def test_rounds_are_stretched_to_what_a_block_took() -> None:
    table = capacity_costs(alone(8).capacity, [RoundCost(1, reading(10, 10, 2 * MS), 4), RoundCost(3, reading(10, 30, 6 * MS), 4)])
    own = own_costs(table, block("las", served(0, 0.0, 1.0), own=reading(10, 20, 8 * MS)))
    assert own.draft_ns(2, 1) + own.verify_ns(2, 1) - own.between_ns == pytest.approx(8 * MS, abs=2)
    assert own_costs(table, block("las", served(0, 0.0, 1.0), own=reading(0, 0))) is table


@pytest.mark.parametrize("predict", [forecast_s, replayed_s])
def test_the_simulator_finds_the_latencies_of_a_queue(predict: Any) -> None:  # noqa: ANN401
    measured = alone(8)
    dues_s = [0.0, 0.001, 0.002, 0.2, 0.2, 0.201, 0.5, 0.5]
    free_s, answers = 0.0, []
    for one, due_s in zip(measured.capacity.served, dues_s, strict=True):
        free_s = max(free_s, due_s) + 0.001 + 0.01 * (one.completion.num_output_tokens // 2)
        answers.append(replace(one, due_s=due_s, event_s=(free_s - 0.001, free_s)))
    own = Reading(replace(measured.capacity.reading.counters), 8 * MS, 0, 0, 0)
    latencies_s = predict(measured, block("fcfs", *answers, own=own), SERVER)
    assert latencies_s == pytest.approx([one.latency_s for one in answers], abs=1e-6)


def test_departures_heard_of_together_still_leave_rounds_that_take_time() -> None:
    measured = alone(8)
    first, *others = measured.capacity.served
    together = [replace(one, event_s=(0.001, 0.002)) for one in others]
    bunched = replace(measured, capacity=replace(measured.capacity, served=(first, *together)))
    latencies_s = forecast_s(bunched, block("laps-sd", *together), replace(SERVER, slots=1))
    assert min(latencies_s) >= 0.001


@contextmanager
def bench(fake: FakeScheduleServer, settings: ScheduleSettings = SETTINGS) -> Iterator[ScheduleBench]:
    with serving(FakeTriton(fake.script)) as url, Client(url) as client:
        yield ScheduleBench(ScheduleServer(fake, client, url, settings.requests, settings.mode), settings, PROMPTS)


def test_every_policy_gets_the_same_requests_at_the_same_times() -> None:
    fake = FakeScheduleServer()
    steps: list[str] = []
    with bench(fake) as runner:
        runner.advance = steps.append
        measured = runner.run(1)
        assert len(steps) == runner.num_answers == 8 * (1 + 2 + 2)
    assert [load["policy"] for load in fake.loads] == ["fcfs", *["fcfs", "laps-sd", "laps-sd", "fcfs"] * 2]
    assert all(load.keys() == {"policy", "max_batch", "max_queue_size"} for load in fake.loads)
    keys = [(own.policy, own.load) for own in measured.blocks]
    assert keys == [(policy, load) for load in (0.9, 0.65) for policy in ("fcfs", "laps-sd", "laps-sd", "fcfs")]
    plans = [[(one.planned, one.due_s) for one in own.served] for own in measured.blocks]
    assert plans[0] == plans[1] != plans[2] == plans[3]
    assert [len(plan) for plan in plans] == [4] * 8
    assert [own.reading.preemptions for own in measured.blocks[:2]] == [0, 4], "without the warm-up's"
    span_s = [plan[-1][1] for plan in plans]
    tokens = [sum(one.completion.num_output_tokens for one in own.served) for own in measured.blocks]
    assert span_s[0] <= tokens[0] / (0.9 * measured.capacity.tokens_per_s)
    assert differing_texts(measured.capacity.served, measured.blocks) == {"fcfs": [], "laps-sd": []}


def test_with_more_rows_rounds_are_measured_for_each_number_of_them() -> None:
    settings = replace(SETTINGS, policies=("fcfs",), requests=4, blocks=1)
    with bench(FakeScheduleServer(), settings) as runner:
        costs = runner.run(3).costs
    assert [(cost.rows, cost.num_requests) for cost in costs] == [(1, 6), (2, 12), (3, 18)]
    with bench(FakeScheduleServer(), replace(settings, replay_load=None)) as runner:
        assert runner.run(3).costs == ()


def test_a_policy_that_is_not_taken_up_is_an_error() -> None:
    with (
        bench(FakeScheduleServer(deaf_to="laps-sd")) as runner,
        pytest.raises(ServerError, match=r"INTERNAL field=policy, max_batch value=\('fcfs', 1\) allowed=laps-sd, 1"),
    ):
        runner.run(1)


def test_the_mode_is_set_where_it_was_asked_for() -> None:
    fake = FakeScheduleServer()
    with bench(fake, replace(SETTINGS, mode="vanilla")) as runner:
        runner.capacity(1)
    assert fake.loads[0]["mode"] == "vanilla"


def test_slots_are_set_where_they_were_asked_for() -> None:
    fake = FakeScheduleServer()
    with serving(FakeTriton(fake.script)) as url, Client(url) as client:
        server = ScheduleServer(fake, client, url, SETTINGS.requests, slots=4)
        assert server.num_slots() == 4
        server.load("las", 4)
        with pytest.raises(ClientError, match="INVALID_ARG field=--slots value=9 allowed=at most the target's 8"):
            ScheduleServer(fake, client, url, SETTINGS.requests, slots=9).num_slots()
    assert [load["slots"] for load in fake.loads] == ["4", "4", "9"]
    assert fake.loads[1]["max_batch"] == "4", "as many as slots"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    with bench(FakeScheduleServer()) as runner:
        return json.loads(json.dumps(schedule_report(SETTINGS, PROMPTS, [runner.run(1)], SERVER)))  # type: ignore[no-any-return]


def test_the_report_holds_what_the_issue_asks_for(report: dict[str, Any]) -> None:
    rows = {(own["policy"], own["load"]): own for own in report["policies"]}
    assert set(rows) == {(policy, load) for policy in ("fcfs", "laps-sd") for load in (0.9, 0.65)}
    for own in rows.values():
        assert own["completed_tokens"] == rows["fcfs", 0.9]["completed_tokens"] > 0
        assert own["simulated"]["latency_mean"] > 0
        assert own["forecast"]["error"] == pytest.approx(own["forecast"]["latency_mean"] / own["latency_mean"] - 1, abs=1e-3)
    assert [(own["policy"], own["load"]) for own in report["ratios"]] == [("laps-sd", 0.9), ("laps-sd", 0.65)]
    assert {own["slots"] for key in ("capacity", "policies", "ratios", "latencies") for own in report[key]} == {8}
    assert report["texts"] == {"identical": True, "differing": {"fcfs": [], "laps-sd": []}}
    assert report["lengths"]["requests"] == len(report["requests"]) == 8
    assert all(own["service_ms"] > 0 for own in report["requests"])
    assert sum(own["output_tokens"] for own in report["requests"]) == sum(1 + sum(own["tokens_per_round"]) for own in report["requests"])
    assert report["settings"]["blocks"] == [["fcfs", "laps-sd"], ["laps-sd", "fcfs"]]


def test_the_report_for_people(report: dict[str, Any], tmp_path: Path) -> None:
    output = io.StringIO()
    Console(file=output, width=80).print(schedule_table(report, 1, 0.65))
    shown = output.getvalue()
    assert "max_batch 1, slots 8, load 0.65 of" in shown
    assert "…" not in shown, "fits 80 columns"
    assert [line.split()[0] for line in shown.splitlines() if line.split()[:1] in (["fcfs"], ["laps-sd"])] == ["fcfs", "laps-sd"]
    pytest.importorskip("matplotlib")
    write_schedule_plot(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def options(*arguments: str) -> argparse.Namespace:
    return parser().parse_args(["schedule", "--json", "r.json", *arguments])


def test_options() -> None:
    default = read_settings(options())
    assert default == ScheduleSettings(("fcfs", *(name for name in POLICIES.names if name != "fcfs")))
    assert default.replay_policies == ("fcfs", "laps-sd")
    assert (default.order(0), default.order(1)) == (default.policies, default.policies[::-1])
    own = read_settings(
        options("--policies", "las", "--max-batch", "4,1", "--no-replay", "--requests", "30", "--blocks", "3", "--slots", "4")
    )
    assert (own.policies, own.max_batch, own.replay_load, own.blocks, own.slots) == (("fcfs", "las"), (4, 1), None, 3, 4)


def test_a_round_has_at_most_as_many_requests_as_there_are_slots() -> None:
    default = read_settings(options())
    assert default.on(8).max_batch == (1, 4, 8), "the last is what is shipped"
    assert default.on(4).max_batch == (1, 4)
    with pytest.raises(ClientError, match="INVALID_ARG field=--max-batch value=4 allowed=at most the 2 slots"):
        default.on(2)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("--policies", "best"), "--policies"),
        (("--max-batch", "-1"), "--max-batch"),
        (("--slots", "-1"), "--slots"),
        (("--max-batch", "x"), "--max-batch"),
        (("--load", "0"), "--load"),
        (("--replay-load", "2"), "--replay-load"),
        (("--requests", "1"), "--requests"),
        (("--requests", "9", "--blocks", "2"), "--blocks"),
        (("--max-tokens", "0"), "--max-tokens"),
    ],
)
def test_bad_options_are_refused_by_name(arguments: tuple[str, ...], field: str) -> None:
    with pytest.raises(ClientError, match=f"INVALID_ARG field={field} "):
        read_settings(options(*arguments))


def test_what_the_simulator_is_told_comes_from_the_repository() -> None:
    assert scheduling_parameters({}) == (30_000, "histogram")
    assert scheduling_parameters({"starvation_limit_ms": "5", "length_predictor": "ridge"}) == (5, "ridge")


@pytest.mark.parametrize(("other_text_under", "status"), [("", 0), ("laps-sd", 1)])
def test_the_command_fails_when_a_text_depends_on_the_policy(
    other_text_under: str, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeScheduleServer(other_text_under=other_text_under)
    (tmp_path / "cosine").mkdir()
    (tmp_path / "cosine" / "config.pbtxt").write_text('parameters { key: "length_predictor" value { string_value: "ridge" } }\n')
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"domain": one.domain, "prompt": one.prompt}) + "\n" for one in PROMPTS), encoding="utf-8")
    file = tmp_path / "report.json"
    arguments = ("--policies", "laps-sd", "--max-batch", "1", "--requests", "8", "--no-replay", "--no-plot", "--prompts", str(prompts))
    args = parser().parse_args(["schedule", "--json", str(file), "--repository", str(tmp_path), "--warmup", "0", *arguments])

    @contextmanager
    def running(_args: argparse.Namespace, _console: Console) -> Iterator[FakeScheduleServer]:
        with serving(FakeTriton(fake.script)) as url:
            fake.grpc_address = url  # type: ignore[attr-defined]
            yield fake

    monkeypatch.setattr(command, "running", running)
    console = Console(file=io.StringIO(), width=80)
    assert command.run_schedule(args, console) == status
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["texts"]["identical"] is (status == 0)
    assert report["settings"]["length_predictor"] == "ridge"
    output: Any = console.file
    assert ("violation: laps-sd answered requests" in output.getvalue()) is (status == 1)
