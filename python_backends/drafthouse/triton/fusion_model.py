"""The `fusion` model: one draft round for a batch, over drafters reached by BLS."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from drafthouse.engine.manifest import read_manifest
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from drafthouse.triton.bls import BlsEngineClient, BlsModel
from drafthouse.triton.codec.envelope import Tensors
from drafthouse.triton.codec.fusion import pack_draft_result, unpack_draft
from drafthouse.triton.inner_model import InnerModel
from drafthouse.triton.parameters import Parameters
from drafthouse.triton.schema import FUSION

KNOWN = "drafters, call_timeout_ms, max_branches"
MAX_BRANCHES = 32


def drafter_model_name(drafter: str) -> str:
    """The Triton model that serves this drafter."""
    return f"drafter_{drafter}"


class FusionModel(InnerModel):
    """Triton's view of `fusion.fuser.CollaborativeFusion`."""

    messages = FUSION

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the ensemble from the configuration, and each drafter's limits from its engine's manifest."""
        parameters = Parameters.from_triton(args)
        drafters = parameters.names("drafters")
        timeout_ms = parameters.integer("call_timeout_ms", 2000, 1, 600_000)
        options = FusionOptions(timeout_ms / 1e3, parameters.integer("max_branches", 0, 0, MAX_BRANCHES))
        parameters.finish(KNOWN)
        repository = Path(args["model_repository"]).parent
        limits = [read_manifest(repository / drafter_model_name(name) / args["model_version"]).max_step_tokens for name in drafters]
        clients = [BlsEngineClient(name, BlsModel(drafter_model_name(name), self._lease, timeout_ms * 1000)) for name in drafters]
        self._num_drafters = len(drafters)
        self._fusion = CollaborativeFusion(clients, limits, options)
        self._loop = asyncio.new_event_loop()

    def answer(self, sections: Tensors) -> Tensors:
        """One draft round."""
        result = self._loop.run_until_complete(self._fusion.draft(unpack_draft(sections)))
        return pack_draft_result(result, self._num_drafters)
