"""Calls to other models: what goes wrong becomes an EngineError, and a call that hangs hangs alone."""

import asyncio

import numpy as np
import pytest

from drafthouse.engine.contract import EngineError, StepCall, StepResult
from drafthouse.triton.bls import BlsEngineClient, BlsModel
from drafthouse.triton.codec.engine import pack_step_result
from drafthouse.triton.codec.envelope import Envelope
from drafthouse.triton.lease import Lease
from drafthouse.triton.schema import ENGINE, LEASE_SECRET, MESSAGE
from fakes import pb_utils
from fakes.pipeline_harness import async_test

SECRET = b"0123456789abcdef"
STATUS = StepResult([], engine_epoch=5, session_ns=0, slots_free=8, slots_total=8)


def client(timeout_s: float = 5.0) -> BlsEngineClient:
    return BlsEngineClient("target", BlsModel("target", Lease(SECRET), timeout_s))


def response() -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse([pb_utils.Tensor(MESSAGE.name, Envelope(ENGINE.answer).seal(pack_step_result(STATUS)))])


@async_test
async def test_a_call_carries_the_secret_and_brings_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        (tensor,) = request.inputs()
        sections = Envelope(ENGINE.call).unseal(tensor.as_numpy())
        assert sections[LEASE_SECRET.name].tobytes() == SECRET
        assert sections["release_uids"].tolist() == [3]
        return response()

    monkeypatch.setattr(pb_utils, "answer_bls", answer)
    assert await client().step(StepCall(()), [3]) == STATUS


@async_test
async def test_an_error_of_the_model_or_of_triton_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("INVALID_ARG field=lease_secret"))

    async def break_down(request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        raise pb_utils.TritonModelException("Stub process is not healthy")

    for answer, words in ((refuse, "lease_secret"), (break_down, "not healthy")):
        monkeypatch.setattr(pb_utils, "answer_bls", answer)
        with pytest.raises(EngineError, match=words):
            await client().step(StepCall(()))


@async_test
async def test_a_call_that_hangs_is_given_up_and_no_second_one_joins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    num_calls, gate = 0, asyncio.Event()

    async def hang(request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        nonlocal num_calls
        num_calls += 1
        await gate.wait()
        return response()

    monkeypatch.setattr(pb_utils, "answer_bls", hang)
    target = client(timeout_s=0.02)
    with pytest.raises(EngineError, match="no answer within"):
        await target.step(StepCall(()))
    with pytest.raises(EngineError, match="given up"):
        await target.step(StepCall(()))
    assert num_calls == 1
    gate.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await target.step(StepCall(())) == STATUS
    assert num_calls == 2


@async_test
async def test_a_caller_that_gives_up_earlier_counts_as_a_hang_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        await asyncio.sleep(3600)
        return response()

    monkeypatch.setattr(pb_utils, "answer_bls", hang)
    target = client()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(target.step(StepCall(())), 0.02)
    with pytest.raises(EngineError, match="given up"):
        await target.step(StepCall(()))


@async_test
async def test_an_answer_that_is_no_message_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def mumble(request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        return pb_utils.InferenceResponse([pb_utils.Tensor(MESSAGE.name, np.array([1], np.int64))])

    monkeypatch.setattr(pb_utils, "answer_bls", mumble)
    with pytest.raises(EngineError, match="field=message"):
        await client().step(StepCall(()))
