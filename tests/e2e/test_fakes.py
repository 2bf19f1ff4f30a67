"""The fake of Triton's Python module has only names that the real one has."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

from drafthouse.launcher import TritonServer
from e2e.support import free_port_config
from e2e.wire import http_post
from fakes import pb_utils


def public(thing: object) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def test_the_fake_has_only_real_names(make_repository: Callable[..., Path], tmp_path: Path) -> None:
    with TritonServer(free_port_config(make_repository("names"), log_dir=tmp_path)) as server:
        status, reply = http_post(server.http_url, "/v2/models/names/generate", b'{"text_input": "?"}')
    assert status == 200
    real = {name: set(names) for name, names in json.loads(json.loads(reply)["names"]).items()}
    own = {"annotations", "Awaitable", "Callable", "Sequence", "np", "answer_bls", "registry"}
    assert public(pb_utils) - own - {"InferenceResponseSender", "Metric"} <= real[""]
    for name, thing in vars(pb_utils).items():
        if inspect.isclass(thing) and thing.__module__ == pb_utils.__name__:
            assert public(thing) <= real[name], name
