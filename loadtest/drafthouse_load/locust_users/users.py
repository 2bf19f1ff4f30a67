"""Locust users that stream completions, and how they take part in an open or a closed loop."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

import gevent
from gevent.pool import Group
from locust import User, tag
from locust.env import Environment
from locust.exception import StopUser
from locust.stats import CSV_STATS_INTERVAL_SEC

from drafthouse_client import Client, GenerateOptions
from drafthouse_load.arrivals import Arrival
from drafthouse_load.locust_users.entries import REQUEST, log_failure, log_stream
from drafthouse_load.locust_users.grpc_stream import stream_events
from drafthouse_load.locust_users.http_stream import SseEndpoint
from drafthouse_load.locust_users.observed import StreamEvent, StreamFailed, observe
from drafthouse_load.locust_users.options import DEFAULT_HOST
from drafthouse_load.locust_users.session import LoadSession

Task = Callable[["StreamUser"], None]
_CSV_PATIENCE_S = 1.5 * CSV_STATS_INTERVAL_SEC  # what was answered last would not be in the files otherwise


class StreamUser(User):
    """Sends completions and reads every event; a subclass speaks a protocol."""

    abstract = True
    host = DEFAULT_HOST
    protocol: ClassVar[str]
    session: ClassVar[LoadSession]  # set before any user starts
    stream: Callable[[str, GenerateOptions], Iterator[StreamEvent]]  # sends a request; set by a subclass when it starts

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._in_flight = Group()
        self.session.num_dispatching += 1

    def on_stop(self) -> None:
        """Give requests under way locust's `--stop-timeout` to end, then drop them."""
        self._in_flight.join(timeout=self.environment.stop_timeout or 0)
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
        gevent.sleep(max(0.0, due_s - time.perf_counter()))
        self._in_flight.spawn(self._request, domain, arrival, due_s)

    def _leave(self) -> None:
        """After the last arrival: wait for the answers; the last user to have its own ends the test."""
        self._in_flight.join()
        self.session.num_dispatching -= 1
        runner = self.environment.runner
        if self.session.num_dispatching == 0 and runner is not None:
            gevent.spawn_later(_CSV_PATIENCE_S, runner.quit if self.environment.web_ui is None else runner.stop)
        raise StopUser

    def _request(self, domain: str, arrival: Arrival | None, due_s: float) -> None:
        options = self.session.generate_options(arrival)
        slo, stats = self.session.options.slo, self.environment.stats
        failure: StreamFailed | None = None
        num_text_bytes = 0
        try:
            record = observe(self.stream(self.session.prompt(domain).prompt, options), due_s, time.perf_counter, self.protocol)
            num_text_bytes = record.num_text_bytes
            log_stream(stats, self.protocol, domain, record, slo)
        except StreamFailed as error:
            failure = error
            log_failure(stats, self.protocol, domain, slo)
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
        super().on_stop()
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
