"""The committed model repository agrees with the schema, and its model.py files stay adapters."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from drafthouse.triton.parameters import parameter_in
from drafthouse.triton.schema import TensorSpec, schema_of

REPOSITORY = Path(__file__).parents[2] / "model_repository"
MODELS = sorted(path.name for path in REPOSITORY.iterdir() if path.is_dir())
MAX_ADAPTER_LINES = 30


def read_config(model: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse((REPOSITORY / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def described(tensor: object) -> TensorSpec:
    data_type = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return TensorSpec(tensor.name, data_type, tuple(tensor.dims), getattr(tensor, "optional", False))


def test_the_repository_is_complete() -> None:
    assert {"cosine", "router", "fusion", "target"} < set(MODELS)
    assert any(model.startswith("drafter_") for model in MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_tensors_are_those_of_the_schema(model: str) -> None:
    config, schema = read_config(model), schema_of(model)
    assert tuple(described(tensor) for tensor in config.input) == schema.inputs
    assert tuple(described(tensor) for tensor in config.output) == schema.outputs
    assert config.max_batch_size == schema.max_batch_size
    assert config.model_transaction_policy.decoupled == schema.decoupled


@pytest.mark.parametrize("model", MODELS)
def test_one_instance_each_because_each_owns_state(model: str) -> None:
    (group,) = read_config(model).instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)


@pytest.mark.parametrize("model", MODELS)
def test_the_adapter_is_thin(model: str) -> None:
    lines = (REPOSITORY / model / "1" / "model.py").read_text().splitlines()
    assert 0 < len(lines) <= MAX_ADAPTER_LINES


def test_every_named_drafter_has_a_model() -> None:
    for model in ("cosine", "fusion"):
        names = read_config(model).parameters["drafters"].string_value.split(",")
        assert {f"drafter_{name}" for name in names} == {m for m in MODELS if m.startswith("drafter_")}


def test_a_parameter_of_another_model_is_read_from_its_file(tmp_path: Path) -> None:
    assert parameter_in(REPOSITORY / "target" / "config.pbtxt", "slots") == read_config("target").parameters["slots"].string_value
    assert parameter_in(REPOSITORY / "target" / "config.pbtxt", "slotz") is None
    (tmp_path / "config.pbtxt").write_text('parameters { key: "slots", value: { string_value: "3" } }')
    assert parameter_in(tmp_path / "config.pbtxt", "slots") == "3"
