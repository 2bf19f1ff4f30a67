"""The router model with the configuration of the committed repository."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from drafthouse.core.environment import LEASE_VARIABLE
from drafthouse.routing.contract import RouteResult, RouteRow, new_route_state
from drafthouse.routing.registry import TOKEN_EMBEDDINGS_FILE
from drafthouse.triton.codec.envelope import Envelope
from drafthouse.triton.codec.routing import pack_route, unpack_route_result
from drafthouse.triton.router_model import RouterModel
from drafthouse.triton.schema import LEASE_SECRET, MESSAGE, ROUTER
from fakes import pb_utils

CONFIG = Path(__file__).parents[3] / "model_repository" / "router" / "config.pbtxt"
SECRET = "0123456789abcdef"
NUM_DRAFTERS = 5


@pytest.fixture
def args(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    monkeypatch.setenv(LEASE_VARIABLE, SECRET)
    (tmp_path / "1").mkdir()
    np.save(tmp_path / "1" / TOKEN_EMBEDDINGS_FILE, np.eye(8, dtype=np.float32))
    config = text_format.Parse(CONFIG.read_text(), model_config_pb2.ModelConfig())
    parameters = {name: {"string_value": value.string_value} for name, value in config.parameters.items()}
    return {"model_config": json.dumps({"parameters": parameters}), "model_repository": str(tmp_path), "model_version": "1"}


def ask(model: RouterModel, row: RouteRow) -> RouteResult:
    sections = pack_route([row]) | {LEASE_SECRET.name: np.frombuffer(SECRET.encode(), np.uint8)}
    message = Envelope(ROUTER.call).seal(sections)
    (response,) = model.execute([pb_utils.InferenceRequest([pb_utils.Tensor(MESSAGE.name, message)])])
    assert response.error() is None
    (answer,) = response.output_tensors()
    (result,) = unpack_route_result(Envelope(ROUTER.answer).unseal(answer.as_numpy()))
    return result


def row(state: np.ndarray, num_rounds: int, max_drafters: int = 0) -> RouteRow:
    """A request of which drafter 2 was right everywhere and nobody else anywhere."""
    proposals = np.full((NUM_DRAFTERS, 5 * num_rounds), 1, np.int32)
    proposals[2] = 3
    return RouteRow(
        request_uid=2**63,
        prompt_logprob=np.linspace(-3, -2, NUM_DRAFTERS, dtype=np.float32),
        state=state,
        proposals=proposals,
        proposal_probs=np.full(proposals.shape, 0.6, np.float32),
        target_tokens=np.full(proposals.shape[1], 3, np.int32),
        allowed=np.ones(NUM_DRAFTERS, np.bool_),
        num_rounds=num_rounds,
        accepted_len=5.0,
        drafted_len=5.0,
        max_drafters=max_drafters,
    )


def test_the_committed_configuration_explores_at_first_and_then_settles(args: dict[str, str]) -> None:
    model = RouterModel()
    model.initialize(args)
    first = ask(model, row(new_route_state(NUM_DRAFTERS), 0))
    assert np.count_nonzero(first.weights) == NUM_DRAFTERS
    assert first.weights.argmax() == NUM_DRAFTERS - 1  # who predicted the prompt best
    assert np.count_nonzero(ask(model, row(new_route_state(NUM_DRAFTERS), 0, max_drafters=2)).weights) == 2
    another = RouterModel()
    another.initialize(args)
    later = ask(another, row(first.state, 4))
    assert np.flatnonzero(later.weights).tolist() == [2]
    assert later.scores.argmax() == 2


def test_a_parameter_that_is_no_option_refuses_the_load(args: dict[str, str]) -> None:
    config = json.loads(args["model_config"])
    config["parameters"]["margins"] = {"string_value": "1"}
    with pytest.raises(ValueError, match="margins"):
        RouterModel().initialize(args | {"model_config": json.dumps(config)})
