"""`drafthouse bench schedule` against the real server: few requests, every part of the report."""

import json
from pathlib import Path

from drafthouse.launcher import TritonServer
from drafthouse_client import Client
from drafthouse_load.prompts import load_prompts
from drafthouse_load.schedule.measure import ScheduleBench
from drafthouse_load.schedule.options import ScheduleSettings
from drafthouse_load.schedule.predict import SimulatedServer
from drafthouse_load.schedule.report import schedule_report
from drafthouse_load.schedule.server import ScheduleServer


def test_policies_give_the_same_texts_on_the_same_arrivals(server: TritonServer, tmp_path: Path) -> None:
    prompts = load_prompts()[:6]
    settings = ScheduleSettings(("fcfs", "las"), max_batch=(1,), replay_load=None, requests=6, blocks=1, warmup=2, max_tokens=12)
    try:
        with Client(server.grpc_address) as client:
            own = ScheduleServer(server, client, server.grpc_address, settings.requests)
            bench = ScheduleBench(own, settings, prompts)
            measured = [bench.run(max_batch) for max_batch in settings.max_batch]
            simulated = SimulatedServer(own.num_slots(), 30_000, "histogram", settings.max_tokens)
    finally:
        server.load_model("cosine")  # as config.pbtxt has it, for the tests that follow
    report = json.loads(json.dumps(schedule_report(settings, prompts, measured, simulated)))
    assert report["texts"] == {"identical": True, "differing": {"fcfs": [], "las": []}}
    rows = report["policies"]
    assert [(own["policy"], own["max_batch"]) for own in rows] == [("fcfs", 1), ("las", 1)]
    assert len({own["completed_tokens"] for own in rows}) == 1
    for own in rows:
        assert own["latency_p99"] >= own["latency_mean"] >= own["ttft_mean"] > 0
        assert own["rows_per_round"] == 1
        assert own["tokens_per_verification"] >= 1
        assert own["simulated"]["latency_mean"] > 0
        assert own["forecast"]["latency_mean"] > 0
    assert all(sum(own["tokens_per_round"]) + 1 == own["output_tokens"] for own in report["requests"])
    assert all(own["service_ms"] > 0 for own in report["requests"])
