"""`drafthouse bench gateway`: what it takes for a fault, and what it measures."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console
from tritonclient.grpc import service_pb2 as pb

from drafthouse.core.errors import ServerError
from drafthouse_client import Client
from drafthouse_client.gateway.settings import GatewaySettings
from drafthouse_load.bench import parser
from drafthouse_load.gateway.command import GatewaySettings as BenchSettings
from drafthouse_load.gateway.command import measure
from drafthouse_load.gateway.streams import Request, direct, through_gateway
from drafthouse_load.prompts import DomainPrompt
from fakes.gateway_server import gateway
from fakes.triton_grpc import PERF, FakeTriton, error, final, response, serving

PROMPTS = [DomainPrompt("code", "a"), DomainPrompt("math", "b")]
QUIET = Console(file=io.StringIO())
SETTINGS = BenchSettings(num_prompts=2, max_tokens=4, streams=4, stream_tokens=4)
ASKED = Request("a", 7, 4, 1.0)


def seeded(inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
    """Writes prompt and seed, in three chunks with text and one without."""
    prompt, seed = inputs["text_input"][0], inputs["seed"][0]
    for text in (f"{prompt}", " and ", ""):
        yield response(text_output=text, output_ids=(1,), num_output_tokens=1)
    yield response(text_output=f"{seed}", output_ids=(2,), num_output_tokens=1, finish_reason="length", **PERF)
    yield final()


def test_both_ways_see_the_same_events() -> None:
    with serving(FakeTriton(seeded)) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url)) as url, Client(grpc_url) as client:
        one, other = direct(client, ASKED), through_gateway(url, "cosine", ASKED)
    assert one.text == other.text == "a and 7"
    assert (one.num_ends, other.num_ends) == (1, 1)
    assert len(one.times_s) == len(other.times_s) == 3
    assert len(other.gaps_s) == 2


def test_a_run_without_faults() -> None:
    with serving(FakeTriton(seeded)) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url)) as url, Client(grpc_url) as client:
        report = measure(client, url, PROMPTS, SETTINGS, QUIET)
    assert report["faulty_streams"] == []
    assert report["latency"]["num_gaps"] == {"direct": 8, "gateway": 8}
    low, high = report["latency"]["added_inter_token_ms_ci95"]
    assert low <= high
    assert (report["streams"]["at_once"], report["streams"]["num_events"]) == (4, 12)


def test_a_stream_of_another_text_is_a_fault() -> None:
    """As a lost or a foreign chunk would make it: here the gateway talks to a server that writes something else."""

    def other(inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
        return seeded(inputs | {"text_input": ["?"]})

    with (
        serving(FakeTriton(seeded)) as grpc_url,
        serving(FakeTriton(other)) as other_url,
        gateway(GatewaySettings(grpc_url=other_url)) as url,
        Client(grpc_url) as client,
    ):
        report = measure(client, url, PROMPTS, SETTINGS, QUIET)
    assert "stream 0: text '? and 0', expected 'a and 0'" in report["faulty_streams"]
    assert len(report["faulty_streams"]) == 2 * 2 + 4


def test_a_stream_that_breaks_off_has_no_end() -> None:
    def breaks(inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
        yield next(seeded(inputs))
        yield error("UNAVAILABLE field=server value=gone")

    with serving(FakeTriton(breaks)) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url)) as url:
        stream = through_gateway(url, "cosine", ASKED)
    assert (stream.text, stream.num_ends) == ("a", 0)


def test_a_refusal_is_told() -> None:
    def refuses(_inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
        yield error("INVALID_ARG field=seed value=1")

    with (
        serving(FakeTriton(refuses)) as grpc_url,
        gateway(GatewaySettings(grpc_url=grpc_url)) as url,
        pytest.raises(ServerError, match=r"400.*field=seed"),
    ):
        through_gateway(url, "cosine", ASKED)


def test_the_command_has_its_options() -> None:
    args = parser().parse_args(["gateway", "--json", "x.json", "--streams", "8"])
    assert (args.streams, args.num_prompts) == (8, BenchSettings().num_prompts)
