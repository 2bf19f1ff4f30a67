"""The Triton adapters without Triton: lease, errors, parameters, the responder, the keeper."""

import json
import threading
import time
from typing import Any

import numpy as np
import pytest

from drafthouse.core.environment import LEASE_VARIABLE
from drafthouse.core.errors import ClientError, ErrorCode, ServerError, invalid
from drafthouse.core.sampling_params import SamplingParams
from drafthouse.pipeline.contract import FinishReason, GenerationRequest, OutputChunk, PerfMetrics
from drafthouse.triton.codec.envelope import Envelope, Tensors
from drafthouse.triton.inner_model import InnerModel
from drafthouse.triton.keeper import FIRST_PAUSE_S, ModelKeeper, looks_dead
from drafthouse.triton.lease import Lease
from drafthouse.triton.parameters import Parameters
from drafthouse.triton.responder import FINAL, Responder, TritonSink
from drafthouse.triton.schema import COSINE, LEASE_SECRET, MESSAGE, MessageSchema, TensorSpec
from fakes import pb_utils

SECRET = "0123456789abcdef"


class Doubler(InnerModel):
    """An inner model that is wrong on purpose for some inputs."""

    messages = MessageSchema((LEASE_SECRET, TensorSpec("x", "INT32", (1,))), (TensorSpec("y", "INT32", (1,)),))

    def answer(self, sections: Tensors) -> Tensors:
        if sections["x"][0] == 0:
            raise invalid("x", 0, "anything but 0")
        return {"y": 2 * sections["x"] + 0 // int(sections["x"][0] != 13)}


def call(model: InnerModel, x: int, secret: bytes = SECRET.encode()) -> pb_utils.InferenceResponse:
    message = Envelope(model.messages.call).seal({LEASE_SECRET.name: np.frombuffer(secret, np.uint8), "x": np.array([x])})
    (response,) = model.execute([pb_utils.InferenceRequest([pb_utils.Tensor(MESSAGE.name, message)])])
    return response


@pytest.fixture
def doubler(monkeypatch: pytest.MonkeyPatch) -> Doubler:
    monkeypatch.setenv(LEASE_VARIABLE, SECRET)
    return Doubler()


def test_an_inner_model_answers_those_with_the_secret(doubler: Doubler) -> None:
    (message,) = call(doubler, 4).output_tensors()
    assert Envelope(doubler.messages.answer).unseal(message.as_numpy())["y"].tolist() == [8]


@pytest.mark.parametrize("secret", [b"", b"0123456789abcdeX", SECRET.encode() + b"0"])
def test_an_inner_model_refuses_those_without(doubler: Doubler, secret: bytes) -> None:
    error = call(doubler, 4, secret).error()
    assert error.code() == pb_utils.TritonError.INVALID_ARG
    assert "field=lease_secret" in error.message()
    assert SECRET not in error.message()


def test_a_refusal_keeps_its_words_and_a_bug_gets_a_number(doubler: Doubler) -> None:
    assert call(doubler, 0).error().message() == "INVALID_ARG field=x value=0 allowed=anything but 0"
    bug = call(doubler, 13).error()
    assert bug.code() == pb_utils.TritonError.INTERNAL
    assert "incident" in bug.message()
    assert "Zero" not in bug.message()


def test_what_is_no_message_is_refused(doubler: Doubler) -> None:
    tensor = pb_utils.Tensor(MESSAGE.name, np.array([7], np.int64))
    (response,) = doubler.execute([pb_utils.InferenceRequest([tensor])])
    assert "INVALID_ARG field=message" in response.error().message()


def test_no_secret_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LEASE_VARIABLE, raising=False)
    with pytest.raises(ServerError, match=LEASE_VARIABLE):
        Lease.from_environment()


def parameters(**values: str) -> Parameters:
    config = {"parameters": {name: {"string_value": value} for name, value in values.items()}}
    return Parameters.from_triton({"model_config": json.dumps(config)})


def test_parameters_are_read_and_checked() -> None:
    read = parameters(slots="4", drafters=" code, math,,", name="x")
    assert read.integer("slots", 8, 1, 16) == 4
    assert read.integer("threads", 2, 1, 16) == 2
    assert read.names("drafters") == ("code", "math")
    assert read.rest() == {"name": "x"}
    read.finish("nothing else")


@pytest.mark.parametrize("value", ["0", "17", "four", "4.5", "", "${SLOTS}"])
def test_a_bad_parameter_refuses_the_load(value: str) -> None:
    with pytest.raises(ClientError, match=r"field=slots .*allowed=1\.\.16"):
        parameters(slots=value).integer("slots", 8, 1, 16)


def test_an_unknown_parameter_refuses_the_load() -> None:
    with pytest.raises(ClientError, match="field=slotz"):
        parameters(slotz="1").finish("slots")


def generation(**options: Any) -> GenerationRequest:  # noqa: ANN401
    return GenerationRequest(1, (5, 6), 4, SamplingParams(), arrival_time_ns=1, **options)


def make_sink(responder: Responder, **options: Any) -> tuple[TritonSink, pb_utils.InferenceResponseSender]:  # noqa: ANN401
    request = pb_utils.InferenceRequest(requested_output_names=COSINE.output_names)
    sink = TritonSink(request, responder)
    sink.generation = generation(**options)
    return sink, request.get_response_sender()


def names_of(response: pb_utils.InferenceResponse | None) -> set[str]:
    assert response is not None
    return {tensor.name() for tensor in response.output_tensors()}


CHUNK = OutputChunk("ab", (7, 8), (0, -1), 2, log_probs=(-0.5, -1.0))
PERF = PerfMetrics(0.5, 1, 2, 3, 4, 5, 6)


def test_chunks_arrive_in_order_and_final_comes_once() -> None:
    responder = Responder()
    sink, sender = make_sink(responder)
    sink.send(CHUNK)
    sink.finish(OutputChunk("c", (9,), (-1,), 1, finish_reason=FinishReason.STOP))
    sink.fail(ServerError(ErrorCode.UNAVAILABLE, "server"))  # too late: the client has its answer
    responder.close()
    assert [flags for _, flags in sender.sent] == [0, FINAL]
    texts = [response.output_tensors()[0].as_numpy()[0, 0] for response, _ in sender.sent if response]
    assert texts == [b"ab", b"c"]


def test_outputs_that_were_not_asked_for_are_not_sent() -> None:
    responder = Responder()
    plain, plain_sender = make_sink(responder)
    plain.finish(CHUNK)
    flags = ("return_log_probs", "return_num_input_tokens", "return_num_output_tokens", "return_finish_reason")
    full, full_sender = make_sink(responder, **dict.fromkeys(flags, True))
    full.finish(OutputChunk("", (), (), 0, finish_reason=FinishReason.LENGTH, perf=PERF))
    responder.close()
    assert names_of(plain_sender.sent[0][0]) == {"text_output", "output_ids", "token_sources"}
    assert names_of(full_sender.sent[0][0]) == set(COSINE.output_names) - {"stats"}


def test_a_client_that_left_is_noticed_and_others_are_not_bothered() -> None:
    responder = Responder()
    gone, gone_sender = make_sink(responder)
    here, _ = make_sink(responder)
    done, done_sender = make_sink(responder)
    for sink in (gone, here, done):
        responder.watch(sink)
    gone_sender.client_gone = done_sender.client_gone = True
    done.finish(CHUNK)
    responder.poll_cancelled()
    responder.close()
    assert (gone.cancelled, here.cancelled, done.cancelled) == (True, False, False)


def test_whoever_is_open_at_the_end_is_turned_away() -> None:
    responder = Responder()
    open_sink, open_sender = make_sink(responder)
    done, done_sender = make_sink(responder)
    for sink in (open_sink, done):
        responder.watch(sink)
    done.finish(CHUNK)
    responder.close()
    ((response, flags),) = open_sender.sent
    assert response is not None
    assert response.error().message().startswith("UNAVAILABLE field=server")
    assert flags == FINAL
    assert len(done_sender.sent) == 1


def test_clients_are_polled_also_while_no_round_ends() -> None:
    responder = Responder()
    gone, sender = make_sink(responder)
    responder.watch(gone)
    sender.client_gone = True
    deadline_s = time.monotonic() + 10
    while not gone.cancelled and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert gone.cancelled
    responder.close()


def test_one_broken_client_does_not_end_the_responder() -> None:
    responder = Responder()
    broken, sender = make_sink(responder)
    sender.send(None, FINAL)
    broken.finish(CHUNK)  # Triton raises: the stream is closed
    healthy, healthy_sender = make_sink(responder)
    healthy.finish(CHUNK)
    responder.close()
    assert len(healthy_sender.sent) == 1


class Reloads:
    """Counts reloads, and lets a test wait for the background thread."""

    def __init__(self, fails: int = 0) -> None:
        self.calls: list[str] = []
        self.now = 100.0
        self._fails = fails
        self._done = threading.Semaphore(0)

    def load(self, name: str) -> None:
        self.calls.append(f"load {name}")
        self._done.release()
        if self._fails:
            self._fails -= 1
            raise pb_utils.TritonModelException("no memory")

    def unload(self, name: str) -> None:
        self.calls.append(f"unload {name}")

    def keeper(self) -> ModelKeeper:
        return ModelKeeper("target", self.load, self.unload, clock=lambda: self.now)

    def wait(self) -> None:
        assert self._done.acquire(timeout=10)
        for thread in threading.enumerate():
            if thread.name == "reload-target":
                thread.join(10)


DEAD = "Failed to process the request(s): Stub process 'target_0_0' is not healthy."


def test_a_dead_model_is_reloaded_once_per_pause() -> None:
    reloads = Reloads()
    keeper = reloads.keeper()
    keeper.saw_error(DEAD)
    assert reloads.calls == []  # it never answered: it is still loading
    keeper.saw_answer()
    keeper.saw_error(DEAD)
    reloads.wait()
    assert reloads.calls == ["unload target", "load target"]
    keeper.saw_error(DEAD)
    assert len(reloads.calls) == 2
    reloads.now += FIRST_PAUSE_S + 0.1
    keeper.saw_error(DEAD)
    reloads.wait()
    assert len(reloads.calls) == 4
    assert keeper.num_reloads == 2


def test_a_reload_that_fails_is_tried_again_later() -> None:
    reloads = Reloads(fails=1)
    keeper = reloads.keeper()
    keeper.saw_answer()
    keeper.saw_error(DEAD)
    reloads.wait()
    assert keeper.num_reloads == 0
    reloads.now += FIRST_PAUSE_S + 0.1
    keeper.saw_error(DEAD)
    reloads.wait()
    assert keeper.num_reloads == 1


@pytest.mark.parametrize("message", ["INVALID_ARG field=lease_secret", "Timeout expired", ""])
def test_other_errors_are_no_reason_to_reload(message: str) -> None:
    assert not looks_dead(message)
