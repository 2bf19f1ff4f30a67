"""The server's HTTP control calls: readiness, and loading and unloading of models with the run's key."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

from drafthouse.launcher.errors import LaunchError

CONTROL_HEADER = "drafthouse-control-key"
GRPC_CONTROL_HEADER = f"triton-grpc-protocol-{CONTROL_HEADER}"
"""Triton prepends this to the name of the key when it checks gRPC metadata."""
RESTRICTED_APIS = "model-repository,shared-memory,logging,trace"
_QUICK_TIMEOUT_S = 2.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""A server that listens everywhere is called on the loopback."""


class ControlClient:
    """Talks to one server. Connections are opened per call: control calls are rare, and a server may be gone."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._host, self._port, self._key = _ANY_ADDRESS.get(host, host), port, key

    def is_ready(self) -> bool:
        """Does the server answer that every model it was told to load is up?"""
        try:
            return self._call("GET", "/v2/health/ready", None, _QUICK_TIMEOUT_S)[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def model_config(self, name: str) -> dict[str, Any]:
        """The configuration a loaded model runs with, as the load call takes it."""
        config: dict[str, Any] = json.loads(self._checked("GET", f"/v2/models/{name}/config", None, _QUICK_TIMEOUT_S, name))
        return config

    def load(self, name: str, config: Mapping[str, Any] | None, timeout_s: float) -> None:
        """Loads or reloads a model and returns when it serves; `config` replaces the whole of its config.pbtxt."""
        body = {} if config is None else {"parameters": {"config": json.dumps(config)}}
        self._checked("POST", f"/v2/repository/models/{name}/load", body, timeout_s, name)

    def unload(self, name: str, timeout_s: float) -> None:
        """Asks for a model to be unloaded; running requests end first."""
        self._checked("POST", f"/v2/repository/models/{name}/unload", {}, timeout_s, name)

    def _checked(self, method: str, path: str, body: object, timeout_s: float, name: str) -> str:
        try:
            status, text = self._call(method, path, body, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            raise LaunchError("UNAVAILABLE", field="model", value=name, allowed=f"a server that answers ({error})") from error
        if status != http.client.OK:
            raise LaunchError("UNAVAILABLE", field="model", value=name, allowed="a model that loads", details=tuple(_reason(text)))
        return text

    def _call(self, method: str, path: str, body: object, timeout_s: float) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {CONTROL_HEADER: self._key})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()


def merge_config(current: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`current` with the keys of `override` replaced; `parameters` are merged one by one and may be plain values.

    Example: `{"parameters": {"policy": "fcfs"}}` changes that parameter and nothing else.
    """
    merged = {**current, **override}
    if "parameters" in override:
        values = {
            key: value if isinstance(value, Mapping) else {"string_value": str(value)} for key, value in override["parameters"].items()
        }
        merged["parameters"] = {**current.get("parameters", {}), **values}
    return merged


def _reason(text: str) -> list[str]:
    try:
        return str(json.loads(text)["error"]).splitlines()[:12]
    except (ValueError, KeyError, TypeError):
        return text.splitlines()[:12]
