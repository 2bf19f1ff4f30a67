"""The `fusion` model: one draft round for a batch, over drafters reached by BLS."""

from collections.abc import Mapping
from pathlib import Path

from drafthouse.engine.manifest import read_manifest
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from drafthouse.triton.bls import BlsEngineClient, BlsModel
from drafthouse.triton.codec.envelope import Tensors
from drafthouse.triton.codec.fusion import pack_draft_result, unpack_draft
from drafthouse.triton.inner_model import InnerModel
from drafthouse.triton.keeper import ModelKeeper
from drafthouse.triton.loops import new_loop
from drafthouse.triton.parameters import Parameters
from drafthouse.triton.schema import FUSION
from drafthouse.triton.wiring import drafter_model_name

KNOWN = "drafters, call_timeout_ms, fuse_every, max_branches"
MAX_FUSE_EVERY = 64
MAX_BRANCHES = 32


class FusionModel(InnerModel):
    """Triton's view of `fusion.fuser.CollaborativeFusion`."""

    messages = FUSION

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the ensemble from the configuration, and each drafter's limits from its engine's manifest."""
        parameters = Parameters.from_triton(args)
        drafters = parameters.names("drafters")
        timeout_ms = parameters.integer("call_timeout_ms", 2000, 1, 600_000)
        options = FusionOptions(
            call_timeout_s=timeout_ms / 1e3,
            fuse_every=parameters.integer("fuse_every", 1, 1, MAX_FUSE_EVERY),
            max_branches=parameters.integer("max_branches", 0, 0, MAX_BRANCHES),
        )
        parameters.finish(KNOWN)
        repository = Path(args["model_repository"]).parent
        models = [drafter_model_name(name) for name in drafters]
        limits = [read_manifest(repository / model / args["model_version"]).max_step_tokens for model in models]
        clients = [
            BlsEngineClient(name, BlsModel(model, self._lease, timeout_ms / 1e3, ModelKeeper(model)))
            for name, model in zip(drafters, models, strict=True)
        ]
        self._num_drafters = len(drafters)
        self._fusion = CollaborativeFusion(clients, limits, options)
        self._loop = new_loop()

    def answer(self, sections: Tensors) -> Tensors:
        """One draft round."""
        result = self._loop.run_until_complete(self._fusion.draft(unpack_draft(sections)))
        return pack_draft_result(result, self._num_drafters)
