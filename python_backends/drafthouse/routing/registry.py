"""Routing policies by name: a policy is a class in a file of its own, and a line here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drafthouse.routing.contract import Router
from drafthouse.routing.cosine import CosineOptions, CosineRouter

TOKEN_EMBEDDINGS_FILE = "token_embeddings.npy"  # [vocab, dim <= 64] float, exported by `drafthouse build`
DEFAULT_POLICY = "cosine"

RouterFactory = Callable[[NDArray[np.float32], Mapping[str, Any]], Router]

ROUTERS: Mapping[str, RouterFactory] = MappingProxyType(
    {
        DEFAULT_POLICY: lambda embeddings, options: CosineRouter(embeddings, CosineOptions(**options)),
    }
)


def load_router(folder: Path, policy: str = DEFAULT_POLICY, options: Mapping[str, Any] | None = None) -> Router:
    """The router ``policy`` with the token embeddings in ``folder``.

    Args:
        folder: where ``token_embeddings.npy`` lies.
        options: fields of the policy's options class by name.

    Raises ValueError for an unknown policy, an unknown or bad option, or a table that is not [vocab, dim]; OSError when
    it cannot be read.
    """
    if policy not in ROUTERS:
        raise ValueError(f"unknown routing policy {policy!r}; known: {', '.join(sorted(ROUTERS))}")
    embeddings = np.load(folder / TOKEN_EMBEDDINGS_FILE, allow_pickle=False)
    if embeddings.ndim != 2:
        raise ValueError(f"{TOKEN_EMBEDDINGS_FILE} has shape {embeddings.shape}; expected [vocab, dim]")
    try:
        return ROUTERS[policy](embeddings.astype(np.float32), options or {})
    except TypeError as error:
        raise ValueError(f"unknown option for routing policy {policy!r}: {error}") from error
