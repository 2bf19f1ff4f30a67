"""Routing calls and results."""

from collections.abc import Mapping, Sequence

import numpy as np

from drafthouse.routing.contract import RouteResult, RouteRow
from drafthouse.triton.codec.envelope import Array, Tensors
from drafthouse.triton.codec.fusion import pack_proposals


def pack_route(rows: Sequence[RouteRow]) -> Tensors:
    """A routing call as the router's sections (`schema.ROUTER`), without the lease secret."""
    num_drafters = len(rows[0].allowed)
    features = np.stack([np.stack((r.prompt_logprob, r.scores, r.allowed), axis=1) for r in rows])
    ids, probs = pack_proposals([r.proposals for r in rows], [r.proposal_probs for r in rows], num_drafters)
    targets = np.full((len(rows), ids.shape[2]), -1, np.int32)
    for i, row in enumerate(rows):
        targets[i, : len(row.target_tokens)] = row.target_tokens
    return {
        "request_uids": np.array([row.request_uid for row in rows], np.uint64),
        "drafter_features": features.astype(np.float32),
        "proposals": ids,
        "proposal_probs": probs,
        "target_tokens": targets,
    }


def unpack_route(tensors: Mapping[str, Array]) -> list[RouteRow]:
    """The inverse of `pack_route`."""
    features = tensors["drafter_features"]
    return [
        RouteRow(
            request_uid=uid,
            prompt_logprob=features[i, :, 0],
            scores=features[i, :, 1],
            proposals=tensors["proposals"][i],
            proposal_probs=tensors["proposal_probs"][i],
            target_tokens=tensors["target_tokens"][i],
            allowed=features[i, :, 2] > 0.0,
        )
        for i, uid in enumerate(tensors["request_uids"].tolist())
    ]


def pack_route_result(results: Sequence[RouteResult]) -> Tensors:
    """The router's answer's section (`schema.ROUTER`)."""
    return {"routes": np.stack([np.stack((r.scores, r.weights), axis=1) for r in results]).astype(np.float32)}


def unpack_route_result(tensors: Mapping[str, Array]) -> list[RouteResult]:
    """The inverse of `pack_route_result`."""
    return [RouteResult(scores=route[:, 0], weights=route[:, 1]) for route in tensors["routes"]]
