"""The `fusion` model: one draft round for a batch, over drafters reached by BLS in this server or by gRPC in others."""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from drafthouse.engine.manifest import read_manifest
from drafthouse.fusion.contract import DrafterClient
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from drafthouse.triton.bls import BlsEngineClient, BlsModel
from drafthouse.triton.codec.envelope import Tensors
from drafthouse.triton.codec.fusion import pack_draft_result, unpack_draft
from drafthouse.triton.inner_model import InnerModel
from drafthouse.triton.keeper import ModelKeeper
from drafthouse.triton.loops import new_loop
from drafthouse.triton.parameters import Parameters
from drafthouse.triton.remote.settings import KNOWN as REMOTE_KNOWN
from drafthouse.triton.remote.settings import MAX_TIMEOUT_MS, RemoteSettings, read_remote
from drafthouse.triton.schema import FUSION
from drafthouse.triton.wiring import drafter_model_name, reach_remote_drafters

KNOWN = f"drafters, call_timeout_ms, patience_ms, fuse_every, pace_fusion, {REMOTE_KNOWN}"
MAX_FUSE_EVERY = 64
START_TIMEOUT_S = 3.0  # what a load waits for remote nodes; who is late joins later


class FusionModel(InnerModel):
    """Triton's view of `fusion.fuser.CollaborativeFusion`."""

    messages = FUSION

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the ensemble from the configuration, and each drafter's limits from its engine's manifest."""
        parameters = Parameters.from_triton(args)
        drafters = parameters.names("drafters")
        timeout_ms = parameters.integer("call_timeout_ms", 2000, 1, MAX_TIMEOUT_MS)
        patience_ms = parameters.integer("patience_ms", round(1e3 * FusionOptions().patience_s), 0, MAX_TIMEOUT_MS)
        fuse_every = parameters.integer("fuse_every", 1, 1, MAX_FUSE_EVERY)
        pace_fusion = parameters.choice("pace_fusion", "auto", ("auto", "on", "off"))
        settings = replace(read_remote(parameters, drafters, timeout_ms), patience_s=patience_ms / 1e3)
        parameters.finish(KNOWN)
        repository, version = Path(args["model_repository"]).parent, args["model_version"]
        self._remote = reach_remote_drafters(settings, repository, version)
        clients = [self._remote.get(name) or self._local(name, timeout_ms / 1e3) for name in drafters]
        limits = [_max_step_tokens(name, settings, repository, version) for name in drafters]
        is_paced = pace_fusion == "on" or (pace_fusion == "auto" and bool(self._remote))
        options = FusionOptions(timeout_ms / 1e3, fuse_every, is_paced, patience_ms / 1e3)
        self._num_drafters = len(drafters)
        self._fusion = CollaborativeFusion(clients, limits, options)
        self._loop = new_loop()
        self._together(drafter.start(START_TIMEOUT_S) for drafter in self._remote.values())

    def answer(self, sections: Tensors) -> Tensors:
        """One draft round."""
        result = self._loop.run_until_complete(self._fusion.draft(unpack_draft(sections)))
        return pack_draft_result(result, self._num_drafters)

    def finalize(self) -> None:
        """Triton is unloading the model: end the connections to other servers."""
        self._together(drafter.close() for drafter in self._remote.values())

    def _local(self, name: str, timeout_s: float) -> DrafterClient:
        model = drafter_model_name(name)
        return BlsEngineClient(name, BlsModel(model, self._lease, timeout_s, ModelKeeper(model)))

    def _together(self, parts: Iterable[Coroutine[None, None, None]]) -> None:
        async def run() -> None:
            await asyncio.gather(*parts)

        self._loop.run_until_complete(run())


def _max_step_tokens(name: str, settings: RemoteSettings, repository: Path, version: str) -> int:
    """What the drafter takes per row and call: as its engine says; one elsewhere was built like the target's, unless configured."""
    if name not in settings.endpoints:
        return read_manifest(repository / drafter_model_name(name) / version).max_step_tokens
    return settings.max_step_tokens or read_manifest(repository / "target" / version).max_step_tokens
