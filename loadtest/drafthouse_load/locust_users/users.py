"""Locust users that stream completions, and how they take part in an open or a closed loop."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

import gevent
from gevent import GreenletExit
from gevent.event import Event
from gevent.pool import Group
from locust import User, tag
from locust.env import Environment
from locust.exception import StopUser

from drafthouse.core.errors import ErrorCode
from drafthouse_client import Client, GenerateOptions
from drafthouse_load.arrivals import Arrival
from drafthouse_load.locust_users.entries import REQUEST, log_failure, log_stream
from drafthouse_load.locust_users.grpc_stream import stream_events
from drafthouse_load.locust_users.http_stream import SseEndpoint
from drafthouse_load.locust_users.observed import StreamEvent, StreamFailed, observe
from drafthouse_load.locust_users.options import DEFAULT_HOST
from drafthouse_load.locust_users.session import LoadSession

Task = Callable[["StreamUser"], None]
_AFTER_LOCUST_S = 1.0  # locust's own limit comes first: what it kills is booked undisturbed
_CUT = StreamFailed(ErrorCode.DEADLINE_EXCEEDED, "--stop-timeout", "cut by the end of the test")


class Ending:
    """When the test's end was asked for: nothing is sent from then on."""

    def __init__(self) -> None:
        self._event = Event()
        self._began_s = 0.0

    def begin(self) -> None:
        """The end is now."""
        self._began_s = time.perf_counter()
        self._event.set()

    def comes_before(self, at_s: float) -> bool:
        """Waits until ``at_s`` (`time.perf_counter`) or the end, whichever is first."""
        return bool(self._event.wait(timeout=max(0.0, at_s - time.perf_counter())))

    def remaining_s(self, limit_s: float) -> float:
        """What is left of ``limit_s``, which began with the end; all of it before."""
        return max(0.0, limit_s - (time.perf_counter() - self._began_s)) if self._event.is_set() else limit_s


class StreamUser(User):
    """Sends completions and reads every event; a subclass speaks a protocol."""

    abstract = True
    host = DEFAULT_HOST
    protocol: ClassVar[str]
    session: ClassVar[LoadSession]  # set before any user starts, the next anew for each test
    ending: ClassVar[Ending] = Ending()
    stream: Callable[[str, GenerateOptions], Iterator[StreamEvent]]  # sends a request; set by a subclass when it starts

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._in_flight = Group()
        self.session.num_dispatching += 1

    def on_stop(self) -> None:
        """Give requests under way locust's `--stop-timeout` to end; those that do not are cut, and counted as failures.

        Dropped without a trace they would flatter a server just when it is overloaded: who is still waiting, has waited longest.
        """
        try:
            self._in_flight.join(timeout=_AFTER_LOCUST_S + self.ending.remaining_s(self.environment.stop_timeout))
        finally:
            self._in_flight.kill()

    def complete(self, domain: str) -> None:
        """One task: in a closed loop a request from start to end, in an open one the next request, when it is due."""
        if self.session.options.arrivals is None:
            self._request(domain, None, time.perf_counter())
            return
        following = self.session.next_arrival()
        if following is None:
            self._leave()
            return
        arrival, due_s = following
        if self.ending.comes_before(due_s):
            raise StopUser
        self._in_flight.spawn(self._request, domain, arrival, due_s)

    def _leave(self) -> None:
        """After the last arrival: wait for the answers; the last user to have its own ends the test."""
        self._in_flight.join()
        self.session.num_dispatching -= 1
        runner = self.environment.runner
        if self.session.num_dispatching == 0 and runner is not None:
            gevent.spawn(runner.quit if self.environment.web_ui is None else runner.stop)
        raise StopUser

    def _request(self, domain: str, arrival: Arrival | None, due_s: float) -> None:
        options = self.session.generate_options(arrival)
        slo, stats = self.session.options.slo, self.environment.stats
        try:
            record = observe(self.stream(self.session.prompt(domain).prompt, options), due_s, time.perf_counter, self.protocol)
        except StreamFailed as error:
            log_failure(stats, self.protocol, domain, slo)
            self._book(domain, due_s, 0, error)
        except GreenletExit:
            log_failure(stats, self.protocol, domain, slo)
            self._book(domain, due_s, 0, _CUT)
            raise
        else:
            log_stream(stats, self.protocol, domain, record, slo)
            self._book(domain, due_s, record.num_text_bytes, None)

    def _book(self, domain: str, due_s: float, num_text_bytes: int, failure: StreamFailed | None) -> None:
        self.environment.events.request.fire(
            request_type=REQUEST,
            name=f"{self.protocol} {domain}",
            response_time=1e3 * (time.perf_counter() - due_s),
            response_length=num_text_bytes,
            exception=failure,
            context=self.context(),
        )


class SseUser(StreamUser):
    """Server-sent events of `/v2/models/<model>/generate_stream`; a connection per request."""

    protocol = "SSE"

    def on_start(self) -> None:
        """Read the address."""
        options = self.session.options
        self.stream = SseEndpoint(self.environment.host or DEFAULT_HOST, options.model, options.timeout_s).stream


class GrpcUser(StreamUser):
    """`ModelStreamInfer`: a connection per user, a call per request."""

    protocol = "gRPC"

    def on_start(self) -> None:
        """Connect."""
        options = self.session.options
        self._client = Client(options.grpc_url, model=options.model, timeout_s=options.timeout_s)
        self.stream = partial(stream_events, self._client)

    def on_stop(self) -> None:
        """Drop what is left, then disconnect."""
        try:
            super().on_stop()
        finally:
            self._client.close()


USERS: tuple[type[StreamUser], ...] = (SseUser, GrpcUser)


def give_tasks(environment: Environment, session: LoadSession) -> None:
    """A task per domain for every user class, weighted by its number of prompts.

    Classes that locust's tags leave without a task are taken out.
    Tags: the protocol in lower case and the domain, so that `--tags sse` or `--exclude-tags math` choose.
    """
    options = environment.parsed_options
    wanted, unwanted = (set(getattr(options, name, None) or ()) for name in ("tags", "exclude_tags"))
    for user in USERS:
        user.tasks = [task for domain, count in session.domains for task in [_task(user.protocol, domain)] * count]
        own = [{user.protocol.lower(), domain} for domain, _ in session.domains]
        if not any((tags & wanted or not wanted) and not tags & unwanted for tags in own) and user in environment.user_classes:
            environment.user_classes.remove(user)


def _task(protocol: str, domain: str) -> Task:
    def complete(user: StreamUser) -> None:
        user.complete(domain)

    complete.__name__ = domain
    tagged: Task = tag(protocol.lower(), domain)(complete)
    return tagged
