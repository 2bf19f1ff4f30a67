"""Events with provenance, and retries, of both clients against an in-process server."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from tritonclient.grpc import service_pb2 as pb

from drafthouse.core.errors import DrafthouseError, ErrorCode
from drafthouse_client import AsyncClient, Client, Event, Finished, GenerateOptions, Retry, ServerSideError, Token, Tokens
from fakes.triton_grpc import FakeTriton, endless, error, response, scripted, serving, two_chunks

UNAVAILABLE = "UNAVAILABLE field=queue value=128 allowed=fewer requests"
AT_ONCE = Retry(attempts=3, first_pause_s=0.0)
Collect = Callable[[str, Retry | None], list[Event]]


def _events(url: str, retry: Retry | None = None) -> list[Event]:
    with Client(url, retry=retry) as client:
        return list(client.events("hello"))


def _events_async(url: str, retry: Retry | None = None) -> list[Event]:
    async def run() -> list[Event]:
        async with AsyncClient(url, retry=retry) as client:
            return [event async for event in client.events("hello")]

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("collect", [_events, _events_async])


@dataclass
class Flaky:
    """Fails a few times, then answers."""

    failures: int
    before: tuple[pb.ModelStreamInferResponse, ...] = ()
    failure: str = UNAVAILABLE

    def __call__(self, _inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
        self.failures -= 1
        yield from (*self.before, error(self.failure)) if self.failures >= 0 else two_chunks()


@BOTH
def test_events_name_the_drafter_behind_each_token(collect: Collect) -> None:
    with serving(FakeTriton(scripted(*two_chunks()))) as url:
        first, second, last = collect(url, None)
    assert first == Tokens("ab", (Token(5, None, -0.5), Token(6, "code", -0.25)))
    assert second == Tokens("c", (Token(7, None, None), Token(8, None, None)))
    assert isinstance(last, Finished)
    assert (last.completion.text, last.completion.finish_reason) == ("abc", "length")


def test_closing_the_events_cancels_the_request() -> None:
    fake = FakeTriton(endless(response(text_output="x")))
    with serving(fake) as url, Client(url) as client:
        with closing(client.events("x")) as events:
            assert next(events) == Tokens("x", ())
        assert fake.cancelled.wait(timeout=10)


@BOTH
def test_a_request_is_sent_again_while_nothing_of_its_answer_has_come(collect: Collect) -> None:
    fake = FakeTriton(Flaky(failures=2))
    with serving(fake) as url:
        events = collect(url, AT_ONCE)
    assert len(events) == 3
    assert len(fake.seen) == 3
    assert fake.seen[0] == fake.seen[2]


@BOTH
@pytest.mark.parametrize(
    ("script", "retry", "num_sent"),
    [
        (Flaky(failures=3), AT_ONCE, 3),  # as often as it may be
        (Flaky(failures=1), None, 1),  # it was not asked for
        (Flaky(failures=1, before=(response(text_output="a"),)), AT_ONCE, 1),  # the text has begun
        (Flaky(failures=1, failure="INVALID_ARG field=top_p value=2"), AT_ONCE, 1),  # it would be refused again
        (Flaky(failures=1), Retry(first_pause_s=1e6, longest_pause_s=1e6), 1),  # the time would be up
    ],
    ids=["exhausted", "off", "begun", "refused", "late"],
)
def test_otherwise_the_error_is_the_callers(collect: Collect, script: Flaky, retry: Retry | None, num_sent: int) -> None:
    fake = FakeTriton(Flaky(script.failures, script.before, script.failure))
    with serving(fake) as url, pytest.raises(ServerSideError):
        collect(url, retry)
    assert len(fake.seen) == num_sent


def test_a_server_that_is_not_there_yet_is_waited_for_within_the_time_limit() -> None:
    with serving(FakeTriton(scripted())) as gone:
        pass
    retry = Retry(attempts=1000, first_pause_s=0.01, longest_pause_s=0.01)
    with Client(gone, retry=retry) as client, pytest.raises(ServerSideError) as caught:
        client.generate("x", GenerateOptions(timeout_s=0.3))
    assert caught.value.code in (ErrorCode.UNAVAILABLE, ErrorCode.DEADLINE_EXCEEDED)


def test_pauses_grow_up_to_a_limit_and_are_spread() -> None:
    assert list(Retry(attempts=5, first_pause_s=1, factor=2, longest_pause_s=3, jitter=0).pauses_s()) == [1, 2, 3, 3]
    spread = [pause for _ in range(50) for pause in Retry(attempts=2, first_pause_s=1, jitter=0.5).pauses_s()]
    assert all(0.5 <= pause <= 1 for pause in spread)
    assert len(set(spread)) > 10


@pytest.mark.parametrize("changed", [{"attempts": 0}, {"first_pause_s": -1.0}, {"factor": 0.5}, {"jitter": 2.0}])
def test_settings_that_make_no_sense_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(DrafthouseError, match=f"field={next(iter(changed))}"):
        Retry(**changed)  # type: ignore[arg-type]
