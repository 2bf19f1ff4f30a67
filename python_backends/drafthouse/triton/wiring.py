"""How `cosine` reaches the models behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drafthouse.engine.contract import EngineClient
from drafthouse.fusion.contract import Fusion
from drafthouse.routing.contract import Router
from drafthouse.triton.bls import BlsEngineClient, BlsFusion, BlsModel, BlsRouter
from drafthouse.triton.keeper import ModelKeeper
from drafthouse.triton.lease import Lease

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


def reach_inner_models(drafters: Sequence[str], target_timeout_s: float, draft_timeout_s: float) -> InnerModels:
    """Clients with the lease secret of this run. Raises ServerError when the environment holds none."""
    lease = Lease.from_environment()

    def kept(model: str, timeout_s: float) -> BlsModel:
        return BlsModel(model, lease, timeout_s, ModelKeeper(model))

    models = {"target": "target", **{name: drafter_model_name(name) for name in drafters}}
    return InnerModels(
        target=BlsEngineClient("target", kept("target", target_timeout_s)),
        fusion=BlsFusion(kept("fusion", draft_timeout_s)),
        router=BlsRouter(kept("router", draft_timeout_s)),
        engines={name: BlsEngineClient(name, BlsModel(model, lease, STATS_TIMEOUT_S)) for name, model in models.items()},
    )
