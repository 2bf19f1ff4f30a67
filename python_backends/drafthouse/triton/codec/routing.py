"""Routing calls and results."""

from collections.abc import Mapping, Sequence

import numpy as np

from drafthouse.routing.contract import NUM_STATE, RouteResult, RouteRow
from drafthouse.triton.codec.envelope import Array, Tensors
from drafthouse.triton.codec.fusion import pack_proposals
from drafthouse.triton.schema import DrafterColumn, RouteColumn, RouteRowColumn


def pack_route(rows: Sequence[RouteRow]) -> Tensors:
    """A routing call as the router's sections (`schema.ROUTER`), without the lease secret."""
    num_drafters = len(rows[0].allowed)
    numbers = np.array([(row.num_rounds, row.accepted_len, row.drafted_len, row.max_drafters) for row in rows], np.float32)
    drafters = np.empty((len(rows), num_drafters, DrafterColumn.STATE + NUM_STATE), np.float32)
    for i, row in enumerate(rows):
        drafters[i, :, DrafterColumn.PROMPT_LOGPROB] = row.prompt_logprob
        drafters[i, :, DrafterColumn.ALLOWED] = row.allowed
        drafters[i, :, DrafterColumn.STATE :] = row.state
    ids, probs = pack_proposals([r.proposals for r in rows], [r.proposal_probs for r in rows], num_drafters)
    targets = np.full((len(rows), ids.shape[2]), -1, np.int32)
    for i, row in enumerate(rows):
        targets[i, : len(row.target_tokens)] = row.target_tokens
    return {
        "request_uids": np.array([row.request_uid for row in rows], np.uint64),
        "row_features": numbers,
        "drafter_features": drafters,
        "proposals": ids,
        "proposal_probs": probs,
        "target_tokens": targets,
    }


def unpack_route(tensors: Mapping[str, Array]) -> list[RouteRow]:
    """The inverse of `pack_route`."""
    drafters = tensors["drafter_features"]
    return [
        RouteRow(
            request_uid=uid,
            prompt_logprob=drafters[i, :, DrafterColumn.PROMPT_LOGPROB],
            state=drafters[i, :, DrafterColumn.STATE :],
            proposals=tensors["proposals"][i],
            proposal_probs=tensors["proposal_probs"][i],
            target_tokens=tensors["target_tokens"][i],
            allowed=drafters[i, :, DrafterColumn.ALLOWED] > 0.0,
            num_rounds=int(numbers[RouteRowColumn.NUM_ROUNDS]),
            accepted_len=numbers[RouteRowColumn.ACCEPTED_LEN],
            drafted_len=numbers[RouteRowColumn.DRAFTED_LEN],
            max_drafters=int(numbers[RouteRowColumn.MAX_DRAFTERS]),
        )
        for i, (uid, numbers) in enumerate(zip(tensors["request_uids"].tolist(), tensors["row_features"].tolist(), strict=True))
    ]


def pack_route_result(results: Sequence[RouteResult]) -> Tensors:
    """The router's answer's section (`schema.ROUTER`)."""
    parts = [np.concatenate((result.weights[:, None], result.scores[:, None], result.state), axis=1) for result in results]
    return {"routes": np.stack(parts).astype(np.float32)}


def unpack_route_result(tensors: Mapping[str, Array]) -> list[RouteResult]:
    """The inverse of `pack_route_result`."""
    return [
        RouteResult(
            state=route[:, RouteColumn.STATE :],
            weights=route[:, RouteColumn.WEIGHT],
            scores=route[:, RouteColumn.SCORE],
        )
        for route in tensors["routes"]
    ]
