"""The OpenAPI description against the gateway that it describes, by generated requests."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from drafthouse_client.gateway.app import create_app
from drafthouse_client.gateway.settings import GatewaySettings
from fakes.gateway_server import TOKENIZER, gateway, logged_chunks
from fakes.triton_grpc import FakeTriton, scripted, serving

schema = schemathesis.openapi.from_dict(create_app(GatewaySettings()).openapi())
BOUND_TO_ANOTHER = ("echo", "max_tokens", "n", "prompt", "stream_options")
QUICK = settings(
    max_examples=25,
    deadline=None,  # the machine may be busy
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with (
        serving(FakeTriton(scripted(*logged_chunks()))) as grpc_url,
        gateway(GatewaySettings(grpc_url=grpc_url, tokenizer_dir=TOKENIZER)) as found,
    ):
        yield found


@schema.parametrize()
@QUICK
def test_every_answer_is_as_described(case: Any, url: str) -> None:  # noqa: ANN401 - schemathesis' own
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "cosine"  # the others are all answered alike
    answer = case.call(base_url=url, timeout=30)
    # Rules between two parameters cannot be described, so what breaks them counts as valid there.
    breaks_rule = answer.status_code == 400 and answer.json()["error"]["param"] in BOUND_TO_ANOTHER
    case.validate_response(answer, excluded_checks=[positive_data_acceptance] if breaks_rule else [])
