"""The fusion model with drafters on other servers, without Triton."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from drafthouse.core.environment import LEASE_VARIABLE
from drafthouse.core.errors import ClientError
from drafthouse.engine.contract import RowStatus
from drafthouse.engine.manifest import EngineManifest
from drafthouse.fusion.contract import DraftCall, DraftResult
from drafthouse.triton.codec.envelope import Envelope
from drafthouse.triton.codec.fusion import pack_draft, unpack_draft_result
from drafthouse.triton.fusion_model import FusionModel
from drafthouse.triton.schema import FUSION, LEASE_SECRET, MESSAGE
from fakes import pb_utils
from fakes.fusion_rounds import row
from fakes.remote_node import FakeNode

SECRET = "0123456789abcdef"
MANIFEST = EngineManifest(1, 1, 1, 8, 8, 1000, 64, 16, (0,), "fp32", "w", "t", "target", 1, "k")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A target, and no drafter."""
    monkeypatch.setenv(LEASE_VARIABLE, SECRET)
    folder = tmp_path / "target" / "1"
    folder.mkdir(parents=True)
    values = {name: getattr(MANIFEST, name) for name in MANIFEST.__dataclass_fields__}
    (folder / "engine.json").write_text(json.dumps(values))
    return tmp_path


@contextmanager
def loaded(repository: Path, **parameters: str) -> Iterator[FusionModel]:
    """A fusion model with these parameters; `remote__code` stands for `remote.code`."""
    named = {name.replace("__", "."): {"string_value": value} for name, value in parameters.items()}
    model = FusionModel()
    arguments = {"model_config": json.dumps({"parameters": named}), "model_repository": str(repository / "fusion"), "model_version": "1"}
    model.initialize(arguments)
    try:
        yield model
    finally:
        model.finalize()


def draft(model: FusionModel, *weights: float) -> DraftResult:
    sections = pack_draft(DraftCall([row(list(weights))]))
    sections[LEASE_SECRET.name] = np.frombuffer(SECRET.encode(), np.uint8)
    message = Envelope(FUSION.call).seal(sections)
    (response,) = model.execute([pb_utils.InferenceRequest([pb_utils.Tensor(MESSAGE.name, message)])])
    assert not response.has_error(), response.error()
    return unpack_draft_result(Envelope(FUSION.answer).unseal(response.output_tensors()[0].as_numpy()))


@contextmanager
def node_in_a_thread() -> Iterator[FakeNode]:
    loop, node = asyncio.new_event_loop(), FakeNode()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(node.start(), loop).result(10)
    try:
        yield node
    finally:
        asyncio.run_coroutine_threadsafe(node.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_it_loads_without_a_folder_of_the_drafter_and_drafts_elsewhere(repository: Path) -> None:
    with node_in_a_thread() as node, loaded(repository, drafters="code", remote__code=node.entry, fuse_every="2") as model:
        for _ in range(2):  # between rounds its loop stands still
            (got,) = draft(model, 1.0).rows
            assert got.drafter_status.tolist() == [RowStatus.OK]
            assert got.tree.tokens.tolist() == [21, 22, 23]


def test_it_loads_although_no_node_is_there(repository: Path) -> None:
    with loaded(repository, drafters="code,math", remote__code="127.0.0.1:9", remote__math="127.0.0.1:9") as model:
        (got,) = draft(model, 1.0, 1.0).rows
    assert (got.drafter_status.tolist(), len(got.tree)) == ([RowStatus.ABSENT] * 2, 0)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"drafters": "code", "remote__code": "nonsense"}, "field=remote.code value='nonsense'"),
        ({"drafters": "code", "remote__math": "a:1"}, "field=remote.math value='a:1' allowed=drafters, call_timeout_ms"),
        ({"drafters": "code", "remote__code": "a:1", "pace_fusion": "maybe"}, "field=pace_fusion value='maybe' allowed=auto, on, off"),
        ({"drafters": "code", "patience_ms": "-1"}, "field=patience_ms value='-1'"),
        ({"drafters": "code"}, "field=engine.json"),
    ],
)
def test_a_wrong_configuration_refuses_the_load(repository: Path, parameters: dict[str, str], words: str) -> None:
    with pytest.raises(ClientError, match=words), loaded(repository, **parameters):
        pass
