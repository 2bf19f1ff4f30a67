"""Clients that go away, do not read, send too much, or may not call."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from drafthouse.core.errors import DrafthouseError
from drafthouse_client.gateway.settings import GatewaySettings
from fakes.gateway_server import TIMEOUT_S, call, connect, gateway, metric
from fakes.triton_grpc import FakeTriton, endless, response, scripted, serving, two_chunks

COMPLETION: dict[str, Any] = {"model": "cosine", "prompt": "hello"}
KEY = "a-secret-of-the-operator"
LIMIT = 2000


def eventually(holds: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


@dataclass
class Flood:
    """Sends as many large chunks as it is let, and counts them."""

    text: str = "x" * 65536
    num_sent: int = field(default=0)

    def __call__(self, _inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
        while True:
            yield response(text_output=self.text)
            self.num_sent += 1


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_cancels_its_streams(stream: bool, n: int) -> None:
    fake = FakeTriton(endless(response(text_output="x")))
    with serving(fake) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url)) as url:
        connection = connect(url)
        connection.request("POST", "/v1/completions", _json(COMPLETION | {"stream": stream, "n": n}), {"content-type": "application/json"})
        assert eventually(lambda: len(fake.seen) == n)
        if stream:
            assert connection.getresponse().readline().startswith(b"data: ")
        assert metric(url, "drafthouse_gateway_open_requests") == 1
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        assert fake.cancelled.wait(TIMEOUT_S)
        assert eventually(lambda: metric(url, "drafthouse_gateway_open_requests") == 0)
        assert metric(url, "drafthouse_gateway_disconnects_total") == 1
        assert all(seen["stream"] == [True] for seen in fake.seen)


def test_a_client_that_goes_away_before_the_first_token_cancels_its_stream() -> None:
    fake = FakeTriton(endless(response(text_output=""), pause_s=0.05))
    with serving(fake) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url)) as url:
        connection = connect(url)
        connection.request("POST", "/v1/completions", _json(COMPLETION | {"stream": True}), {"content-type": "application/json"})
        assert eventually(lambda: len(fake.seen) == 1)
        connection.close()
        assert fake.cancelled.wait(TIMEOUT_S)


def test_what_a_client_does_not_read_is_not_produced_and_in_the_end_given_up() -> None:
    flood = Flood()
    fake = FakeTriton(flood)
    with serving(fake) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url, stall_s=1.0)) as url:
        connection = connect(url)
        connection.connect()
        assert connection.sock is not None
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.request("POST", "/v1/completions", _json(COMPLETION | {"stream": True}), {"content-type": "application/json"})
        connection.getresponse()
        assert fake.cancelled.wait(TIMEOUT_S)
        assert eventually(lambda: metric(url, "drafthouse_gateway_stalls_total") == 1)
        # What lies in the kernel's and gRPC's buffers: a second's production would be thousands.
        assert flood.num_sent < 400
        assert metric(url, "drafthouse_gateway_open_requests") == 0
        connection.close()


def test_bodies_over_the_limit_are_refused_announced_or_not() -> None:
    fake = FakeTriton(scripted(*two_chunks()))
    with serving(fake) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url, max_body_bytes=LIMIT)) as url:
        announced = call(url, "/v1/completions", COMPLETION | {"prompt": "x" * LIMIT})
        unannounced = call(url, "/v1/completions", _json(COMPLETION | {"prompt": "x" * LIMIT}), headers={"transfer-encoding": "chunked"})
        fits = call(url, "/v1/completions", _json(COMPLETION).ljust(LIMIT))
    for answer in (announced, unannounced):
        assert (answer.status, answer.json["error"]["code"]) == (413, "request_too_large")
    assert fits.status == 200
    assert len(fake.seen) == 1


def test_calls_without_the_token_are_refused_and_operators_calls_are_not() -> None:
    fake = FakeTriton(scripted(*two_chunks()))
    with serving(fake) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url, api_key=KEY)) as url:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": KEY},
            {"authorization": "Basic " + KEY},
            {"authorization": "Bearer \xe9"},
        ):
            for path, body in (("/v1/completions", COMPLETION), ("/v1/models", None), ("/v1/nothing", None)):
                answer = call(url, path, body, headers=headers)
                assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
                assert KEY not in answer.body.decode()
        assert fake.seen == []
        assert call(url, "/v1/completions", COMPLETION, headers={"authorization": f"bearer {KEY}"}).status == 200
        assert [call(url, path).status for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]


def test_no_other_origin_may_call_unless_it_was_named() -> None:
    asks = {"origin": "https://page.example", "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    with serving(FakeTriton(scripted(*two_chunks()))) as grpc_url:
        with gateway(GatewaySettings(grpc_url=grpc_url)) as url:
            answer = call(url, "/v1/completions", method="OPTIONS", headers=asks)
            assert "access-control-allow-origin" not in answer.headers
            assert "access-control-allow-origin" not in call(url, "/v1/models", headers=asks).headers
        with gateway(GatewaySettings(grpc_url=grpc_url, cors_origins=("https://page.example",), api_key=KEY)) as url:
            answer = call(url, "/v1/completions", method="OPTIONS", headers=asks)
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://page.example")
            other = call(url, "/v1/completions", method="OPTIONS", headers=asks | {"origin": "https://other.example"})
            assert "access-control-allow-origin" not in other.headers
            refused = call(url, "/v1/models", headers=asks)
            assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://page.example")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"cors_origins": ("*",)}, "cors_origin"),
        ({"api_key": "with\nbreak"}, "api_key"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"stall_s": -1.0}, "stall_s"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(DrafthouseError, match=f"field={named}") as caught:
        GatewaySettings(**changed)
    assert "break" not in str(caught.value)
    assert KEY not in repr(GatewaySettings(api_key=KEY))


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()
