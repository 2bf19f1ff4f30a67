"""The OpenAI gateway before a real server, called by the clients that people use: OpenAI's own package and curl."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from drafthouse.launcher import TritonServer
from drafthouse_client import Client, GenerateOptions
from drafthouse_client.gateway.app import create_app
from drafthouse_client.gateway.settings import GatewaySettings
from e2e.support import eventually
from fakes.gateway_server import call, connect, gateway, metric

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "def add(a, b):"
KEY = "only-for-this-test"
GREEDY: dict[str, Any] = {"model": "cosine", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
MESSAGES = [{"role": "user", "content": PROMPT}]
LONG = GREEDY | {"max_tokens": 400, "min_tokens": 400}
NUM_STREAMS = 64
AIPERF, AIPERF_VARIABLE = "aiperf==0.13.0", "DRAFTHOUSE_TEST_AIPERF"
"""What is installed where the variable does not name a program."""

schema = schemathesis.openapi.from_dict(create_app(GatewaySettings()).openapi())


@pytest.fixture(scope="module")
def url(server: TritonServer, repository_dir: Path) -> Iterator[str]:
    tokenizer = next(repository_dir.glob("cosine/*/tokenizer.json")).parent
    with gateway(GatewaySettings(grpc_url=server.grpc_address, tokenizer_dir=tokenizer, api_key=KEY)) as found:
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=120) as found:
        yield found


@pytest.fixture(scope="module")
def triton(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_address) as found:
        yield found


@pytest.fixture(scope="module")
def text(triton: Client) -> str:
    """What the server itself answers."""
    return triton.generate(PROMPT, GenerateOptions(max_tokens=12, temperature=0.0)).text


def test_openais_client_completes_and_streams(client: openai.OpenAI, text: str) -> None:
    whole = client.completions.create(**GREEDY, logprobs=0)
    assert whole.choices[0].text == text
    assert whole.choices[0].logprobs is not None
    assert "".join(whole.choices[0].logprobs.tokens or []) == text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    chunks = list(client.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == text
    assert len(chunks) > 2
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_openais_client_chats_and_streams(client: openai.OpenAI, text: str) -> None:
    chat: dict[str, Any] = {"model": "cosine", "messages": MESSAGES, "max_completion_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**chat)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (text, "length")
    chunks = list(client.chat.completions.create(**chat, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


def test_usage_tells_accepted_and_rejected_draft_tokens(client: openai.OpenAI) -> None:
    def details(num_draft_tokens: int | None) -> tuple[int, int]:
        usage = client.completions.create(**GREEDY | {"max_tokens": 32}, extra_body={"num_draft_tokens": num_draft_tokens}).usage
        assert usage is not None
        assert usage.completion_tokens_details is not None
        accepted, rejected = (
            usage.completion_tokens_details.accepted_prediction_tokens,
            usage.completion_tokens_details.rejected_prediction_tokens,
        )
        assert accepted is not None
        assert rejected is not None
        return accepted, rejected

    assert details(0) == (0, 0)
    accepted, rejected = details(None)
    assert accepted + rejected > 0


def test_one_seed_gives_one_text_and_every_choice_its_own(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": "cosine", "prompt": PROMPT, "max_tokens": 16, "seed": 11, "temperature": 1.0, "top_p": 0.9}
    first = client.completions.create(**body, n=3).choices
    assert [choice.index for choice in first] == [0, 1, 2]
    assert len({choice.text for choice in first}) > 1
    again = client.completions.create(**body, n=2, extra_body={"num_draft_tokens": 0}).choices
    assert [choice.text for choice in again] == [choice.text for choice in first[:2]]
    assert client.completions.create(**body).choices[0].text == first[0].text


def test_a_stop_word_ends_the_text_before_it(client: openai.OpenAI, text: str) -> None:
    word = text[len(text) // 2 :][:4]
    choice = client.completions.create(**GREEDY, stop=[word]).choices[0]
    assert (choice.text, choice.finish_reason) == (text[: text.index(word)], "stop")


def test_provenance_and_pinned_drafters(client: openai.OpenAI, triton: Client) -> None:
    name = triton.drafters()[0]
    choice = client.completions.create(**GREEDY, extra_body={"drafters": [name], "provenance": True}).choices[0]
    assert choice.model_extra is not None
    assert set(choice.model_extra["provenance"]["sources"]) <= {name, None}


def test_openais_client_names_what_was_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**GREEDY, extra_body={"drafters": ["nobody"]})
    assert (caught.value.param, caught.value.code) == ("drafters", "invalid_value")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**GREEDY | {"max_tokens": 10**6})
    assert (caught.value.param, caught.value.code) == ("max_tokens", "context_length_exceeded")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(**GREEDY | {"model": "gpt"})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.InternalServerError) as late:
        client.completions.create(**GREEDY | {"max_tokens": 400}, extra_body={"deadline_ms": 1, "min_tokens": 400})
    assert late.value.code == "deadline_exceeded"


def test_many_streams_lose_and_reorder_nothing(url: str, triton: Client) -> None:
    """Every stream is sampled from a seed of its own, so that a chunk of another one, or out of order, makes another text."""

    async def stream(client: openai.AsyncOpenAI, seed: int) -> tuple[str, int]:
        body: dict[str, Any] = GREEDY | {"max_tokens": 6, "temperature": 1.0, "seed": seed}
        text, finishes = "", 0
        async for chunk in await client.completions.create(**body, stream=True):
            text += chunk.choices[0].text
            finishes += chunk.choices[0].finish_reason is not None
        return text, finishes

    async def run() -> list[tuple[str, int]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=150) as client:
            return await asyncio.gather(*(stream(client, seed) for seed in range(NUM_STREAMS)))

    texts = asyncio.run(run())
    assert {finishes for _, finishes in texts} == {1}
    assert len({text for text, _ in texts}) > NUM_STREAMS // 2
    for seed in range(0, NUM_STREAMS, 8):
        alone = triton.generate(PROMPT, GenerateOptions(max_tokens=6, temperature=1.0, seed=seed))
        assert texts[seed][0] == alone.text


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_client_that_goes_away_frees_its_slot_whether_it_streamed_or_not(url: str, triton: Client, stream: bool) -> None:
    before = triton.stats()
    connection = connect(url)
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/completions", json.dumps(LONG | {"stream": stream}), headers)
    assert eventually(lambda: triton.stats()["running"] == 1)
    rounds = triton.stats()["counters"]["rounds"]
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()

    def is_free() -> bool:
        stats = triton.stats()
        held = {name: engine["slots_total"] - engine["slots_free"] for name, engine in stats["engines"].items()}
        return (stats["running"], stats["queue_len"]) == (0, 0) and not any(held.values())

    assert eventually(is_free)
    after = triton.stats()
    assert after["failed"].get("CANCELLED", 0) == before["failed"].get("CANCELLED", 0) + 1
    # The one under way and, on a machine with time for it, one more; 400 tokens would take more than fifty.
    assert after["counters"]["rounds"] - rounds <= 10
    assert after["finished"] == before["finished"], "it was cut short, it did not run to its end"
    assert metric(url, "drafthouse_gateway_open_requests") == 0


def test_curl_completes_and_streams(url: str, text: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    command = ["curl", "-sN", f"{url}/v1/completions", "-H", f"Authorization: Bearer {KEY}", "--json"]
    whole = subprocess.run([*command, json.dumps(GREEDY)], capture_output=True, check=True, timeout=60).stdout
    assert json.loads(whole)["choices"][0]["text"] == text
    events = subprocess.run([*command, json.dumps(GREEDY | {"stream": True})], capture_output=True, check=True, timeout=60).stdout
    *chunks, done, _ = events.decode().split("\n\n")
    assert done == "data: [DONE]"
    assert "".join(json.loads(chunk.removeprefix("data: "))["choices"][0]["text"] for chunk in chunks) == text


@schema.include(path_regex="completions").parametrize()
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)
def test_generated_requests_fail_nowhere(case: Any, url: str) -> None:  # noqa: ANN401 - schemathesis' own
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body.update(model="cosine", max_tokens=4, max_completion_tokens=4 if "messages" in case.body else None)
    answer = case.call(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
    assert answer.status_code in (200, 400, 405, 504), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", ["stream_events.py", "many_at_once.py", "openai_chat.py", "completions.sh"])
def test_the_examples_run(server: TritonServer, url: str, name: str) -> None:
    program = ["bash"] if name.endswith(".sh") else [sys.executable]
    environment = {"DRAFTHOUSE_GRPC": server.grpc_address, "DRAFTHOUSE_GATEWAY": url, "DRAFTHOUSE_API_KEY": KEY, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [*program, str(ROOT / "client" / "examples" / name)], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


@pytest.fixture
def aiperf(tmp_path: Path) -> str:
    """NVIDIA's load generator. It needs a numpy that this environment must not have, so it gets one of its own."""
    named = os.environ.get(AIPERF_VARIABLE)
    if named is not None:
        return named
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "aiperf"], check=True)
    subprocess.run([tmp_path / "aiperf" / "bin" / "python", "-m", "pip", "install", "--quiet", AIPERF], check=True)
    return str(tmp_path / "aiperf" / "bin" / "aiperf")


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_aiperf_measures_it(url: str, repository_dir: Path, tmp_path: Path, aiperf: str, endpoint: str) -> None:
    tokenizer = next(repository_dir.glob("cosine/*/tokenizer.json")).parent
    load = ["--isl", "24", "--osl", "12", "--request-count", "6", "--concurrency", "3", "--extra-inputs", "ignore_eos:true"]
    command = [aiperf, "profile", "--model", "cosine", "--url", url, "--api-key", KEY, "--endpoint-type", endpoint, "--streaming", *load]
    output = ["--tokenizer", str(tokenizer), "--use-server-token-count", "--ui", "none", "--artifact-dir", str(tmp_path / "report")]
    done = subprocess.run([*command, *output], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
    report = json.loads((tmp_path / "report" / "profile_export_aiperf.json").read_text())
    assert (report["request_count"]["avg"], report["error_summary"]) == (6, [])
    assert report["total_usage_completion_tokens"]["avg"] == 6 * 12
    assert report["total_usage_accepted_prediction_tokens"]["avg"] + report["total_usage_rejected_prediction_tokens"]["avg"] > 0


def test_serve_starts_a_gateway_beside_its_server_and_ends_it_with_it(make_repository: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    options = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--exit-timeout-s", "2", "--gateway-port", str(port)]
    command = [sys.executable, "-m", "drafthouse_client.cli", "serve", "--model-repository", str(make_repository("echo")), *options]
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return call(url, "/health").status == 200
        except ConnectionRefusedError:
            return False

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serve:
        try:
            assert eventually(answers, timeout_s=60)
            assert call(url, "/ready").status == 503, "this server has no model that speaks text"
        finally:
            serve.terminate()
        said = serve.communicate(timeout=30)[1]
    assert serve.returncode == 0
    assert f"OpenAI API: {url}/v1." in said
    assert not answers()
