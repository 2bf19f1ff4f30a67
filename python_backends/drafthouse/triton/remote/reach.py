"""Remote drafters from their settings. Brings gRPC, so it is imported only where there are any."""

from __future__ import annotations

from drafthouse.engine.manifest import EngineManifest
from drafthouse.triton.remote.drafter import RemoteDrafter
from drafthouse.triton.remote.node import Contact
from drafthouse.triton.remote.settings import RemoteSettings
from drafthouse.triton.wiring import drafter_model_name


def reach_remote(settings: RemoteSettings, target: EngineManifest) -> dict[str, RemoteDrafter]:
    """A client for every remote drafter by name, not started yet; their ids must lie in the target's vocabulary."""

    def contact(name: str) -> Contact:
        return Contact(
            drafter_model_name(name), target.vocab_size, settings.lease, settings.timeout_s, settings.tls, patience_s=settings.patience_s
        )

    return {name: RemoteDrafter(name, endpoints, contact(name)) for name, endpoints in settings.endpoints.items()}
