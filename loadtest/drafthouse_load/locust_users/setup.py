"""Connects the users with locust's events. Imported by the locustfile, after locust has patched the standard library."""

import argparse

import gevent
from locust import events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC

from drafthouse.core.errors import ClientError, unsupported
from drafthouse_load.locust_users.grpc_stream import make_cooperative
from drafthouse_load.locust_users.options import DEFAULT_HOST, add_options, read_options
from drafthouse_load.locust_users.session import LoadSession
from drafthouse_load.locust_users.users import Ending, StreamUser, give_tasks

_CSV_PATIENCE_S = 1.5 * CSV_STATS_INTERVAL_SEC


def install() -> None:
    """Add the options; read them when locust has parsed its command line, and anew for every test that its web page starts."""
    make_cooperative()
    events.init_command_line_parser.add_listener(_add_options)  # type: ignore[no-untyped-call]
    events.init.add_listener(_prepare)  # type: ignore[no-untyped-call]
    events.test_start.add_listener(_begin)  # type: ignore[no-untyped-call]
    events.test_stopping.add_listener(_end)  # type: ignore[no-untyped-call]
    events.test_stop.add_listener(_write)  # type: ignore[no-untyped-call]


def _add_options(parser: argparse.ArgumentParser, **_: object) -> None:
    add_options(parser)


def _prepare(environment: Environment, **_: object) -> None:
    """Ends locust with one line where an option is refused."""
    try:
        session = _session(environment)
        if session.options.arrivals is not None and isinstance(environment.runner, MasterRunner | WorkerRunner):
            raise unsupported("--rate, --trace", "several processes", "one process: it sends hundreds of requests a second")
    except ClientError as error:
        raise SystemExit(str(error)) from None
    # locust's own default, 0, kills what is under way when the time is up. A request that waits longer has failed by itself.
    environment.stop_timeout = environment.stop_timeout or session.options.timeout_s
    give_tasks(environment, session)


def _begin(environment: Environment, **_: object) -> None:
    StreamUser.session = _session(environment)
    StreamUser.session.seed_tasks()
    StreamUser.ending = Ending()


def _end(**_: object) -> None:
    StreamUser.ending.begin()


def _write(environment: Environment, **_: object) -> None:
    """Wait for the CSV files: what was answered last would not be in them otherwise."""
    assert environment.parsed_options is not None
    if environment.parsed_options.csv_prefix:
        gevent.sleep(_CSV_PATIENCE_S)


def _session(environment: Environment) -> LoadSession:
    assert environment.parsed_options is not None
    options = read_options(environment.parsed_options, environment.host or DEFAULT_HOST)
    return LoadSession(options, getattr(environment.runner, "worker_index", 0))
