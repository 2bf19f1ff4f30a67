"""Overrides of a model's configuration."""

from __future__ import annotations

import pytest

from drafthouse.launcher.control import ControlClient, merge_config
from drafthouse.launcher.errors import LaunchError

CURRENT = {
    "name": "cosine",
    "max_batch_size": 1,
    "parameters": {"policy": {"string_value": "fcfs"}, "mode": {"string_value": "cosine"}},
}


def test_one_parameter_changes_and_nothing_else() -> None:
    merged = merge_config(CURRENT, {"parameters": {"policy": "laps-sd"}})
    assert merged == {**CURRENT, "parameters": {"policy": {"string_value": "laps-sd"}, "mode": {"string_value": "cosine"}}}
    assert CURRENT["parameters"] != merged["parameters"], "the current configuration is not changed in place"


def test_values_in_the_servers_own_form_and_other_keys_pass_through() -> None:
    merged = merge_config({"name": "cosine"}, {"max_batch_size": 4, "parameters": {"depth": {"string_value": "3"}, "width": 2}})
    assert merged == {"name": "cosine", "max_batch_size": 4, "parameters": {"depth": {"string_value": "3"}, "width": {"string_value": "2"}}}


def test_a_server_that_is_gone_is_not_ready_and_refuses_by_name() -> None:
    control = ControlClient("127.0.0.1", 1, "key")
    assert not control.is_ready()
    with pytest.raises(LaunchError, match="UNAVAILABLE field=model value=cosine"):
        control.load("cosine", None, 1.0)
