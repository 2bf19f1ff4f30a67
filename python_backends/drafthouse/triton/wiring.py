"""How `cosine` and `fusion` reach the models behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from drafthouse.engine.contract import EngineClient
from drafthouse.engine.manifest import read_manifest
from drafthouse.fusion.contract import Fusion
from drafthouse.routing.contract import Router
from drafthouse.triton.bls import BlsEngineClient, BlsFusion, BlsModel, BlsRouter
from drafthouse.triton.keeper import ModelKeeper
from drafthouse.triton.lease import Lease
from drafthouse.triton.remote.settings import MAX_TIMEOUT_MS, RemoteSettings, read_remote, remote_parameters

if TYPE_CHECKING:
    from drafthouse.triton.remote.drafter import RemoteDrafter

STATS_TIMEOUT_S = 5.0


def drafter_model_name(drafter: str) -> str:
    """The Triton model that serves this drafter."""
    return f"drafter_{drafter}"


@dataclass(frozen=True, slots=True)
class InnerModels:
    """Clients of the models behind `cosine`."""

    target: EngineClient
    fusion: Fusion
    router: Router
    # By name, for statistics only. They have no keepers: looking at an engine must neither disturb nor reload it.
    engines: Mapping[str, EngineClient]


def reach_remote_drafters(settings: RemoteSettings, repository: Path, version: str) -> dict[str, RemoteDrafter]:
    """A client, not started yet, for every drafter that lives on other servers."""
    if not settings.endpoints:
        return {}
    # gRPC costs half a second and 30 MB, which a server whose drafters are its own saves.
    from drafthouse.triton.remote.reach import reach_remote

    return reach_remote(settings, read_manifest(repository / "target" / version))


def reach_inner_models(
    drafters: Sequence[str], target_timeout_s: float, draft_timeout_s: float, repository: Path, version: str
) -> InnerModels:
    """Clients with the lease secret of this run. Raises ServerError when the environment holds none.

    Which drafters are remote stands in `fusion`'s config.pbtxt in ``repository``; `cosine` only asks those for their statistics.
    """
    lease = Lease.from_environment()
    parameters = remote_parameters(repository / "fusion" / "config.pbtxt", drafters)
    settings = replace(read_remote(parameters, drafters, MAX_TIMEOUT_MS), timeout_s=STATS_TIMEOUT_S)
    engines: dict[str, EngineClient] = {
        name: BlsEngineClient(name, BlsModel(model, lease, STATS_TIMEOUT_S))
        for name, model in {"target": "target", **{name: drafter_model_name(name) for name in drafters}}.items()
    }
    engines.update(reach_remote_drafters(settings, repository, version))

    def kept(model: str, timeout_s: float) -> BlsModel:
        return BlsModel(model, lease, timeout_s, ModelKeeper(model))

    return InnerModels(
        target=BlsEngineClient("target", kept("target", target_timeout_s)),
        fusion=BlsFusion(kept("fusion", draft_timeout_s)),
        router=BlsRouter(kept("router", draft_timeout_s)),
        engines=engines,
    )
