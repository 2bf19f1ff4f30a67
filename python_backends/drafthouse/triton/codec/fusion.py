"""Draft calls and results."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.tree import DraftTree
from drafthouse.fusion.contract import DraftCall, DraftResult, DraftRow, DraftRowResult
from drafthouse.triton.codec.envelope import Array, Tensors
from drafthouse.triton.codec.rows import (
    MASK64,
    offsets_of,
    pack_release,
    pack_rows,
    unpack_release,
    unpack_sampling,
)
from drafthouse.triton.schema import RowColumn


def pack_draft(call: DraftCall) -> Tensors:
    """A draft call as fusion's sections (`schema.FUSION`), without the lease secret."""
    if not call.rows:
        return pack_release({}, call.release_uids)
    tensors = pack_rows(call.rows, (row.num_draft_tokens for row in call.rows))
    tensors["tokens"] = np.concatenate([row.tokens for row in call.rows]).astype(np.int32)
    tensors["weights"] = np.stack([row.weights for row in call.rows]).astype(np.float32)
    return pack_release(tensors, call.release_uids)


def unpack_draft(tensors: Mapping[str, Array]) -> DraftCall:
    """The inverse of `pack_draft`."""
    release_uids = unpack_release(tensors)
    if "rows" not in tensors:
        return DraftCall((), release_uids)
    offsets = offsets_of(tensors["rows"][:, RowColumn.NUM_TOKENS])
    rows = [
        DraftRow(
            request_uid=row[RowColumn.REQUEST_UID] & MASK64,
            prefix_len=row[RowColumn.PREFIX_LEN],
            tokens=tensors["tokens"][begin:end],
            num_draft_tokens=row[RowColumn.COUNT],
            weights=weights,
            sampling=sampling,
        )
        for row, begin, end, weights, sampling in zip(
            tensors["rows"].tolist(), offsets, offsets[1:], tensors["weights"], unpack_sampling(tensors), strict=False
        )
    ]
    return DraftCall(rows, release_uids)


def pack_proposals(
    proposals: Sequence[NDArray[np.int32]], probs: Sequence[NDArray[np.float32]], num_drafters: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Rows of different trunk length, padded to the longest: ids with -1, probabilities with 0."""
    width = max((p.shape[1] for p in proposals), default=0)
    ids = np.full((len(proposals), num_drafters, width), -1, np.int32)
    values = np.zeros((len(proposals), num_drafters, width), np.float32)
    for i, (row_ids, row_probs) in enumerate(zip(proposals, probs, strict=True)):
        ids[i, :, : row_ids.shape[1]] = row_ids
        values[i, :, : row_probs.shape[1]] = row_probs
    return ids, values


def pack_draft_result(result: DraftResult, num_drafters: int) -> Tensors:
    """Fusion's answer's sections (`schema.FUSION`)."""
    rows = result.rows
    trees = [row.tree for row in rows]
    nodes = np.zeros((sum(map(len, trees)), 3), np.int32)
    confidence = np.zeros(len(nodes), np.float32)
    begin = 0
    for tree in trees:
        end = begin + len(tree)
        nodes[begin:end] = np.stack((tree.tokens, tree.parents, tree.source), axis=1)
        confidence[begin:end] = tree.confidence
        begin = end
    state = np.zeros((len(rows), num_drafters, 3), np.int32)
    for i, row in enumerate(rows):
        state[i] = np.stack((row.drafter_status, row.cached_len, row.num_scored), axis=1)
    ids, probs = pack_proposals([r.proposals for r in rows], [r.proposal_probs for r in rows], num_drafters)
    return {
        "draft_info": np.array([result.draft_session_ns, ids.shape[2]], np.int64),
        "tree_sizes": np.array([len(tree) for tree in trees], np.int32),
        "tree_nodes": nodes,
        "tree_confidence": confidence,
        "drafter_state": state,
        "prompt_logprob": np.array([row.prompt_logprob for row in rows], np.float32).reshape(-1, num_drafters),
        "proposals": ids,
        "proposal_probs": probs,
    }


def unpack_draft_result(tensors: Mapping[str, Array]) -> DraftResult:
    """The inverse of `pack_draft_result` (proposals stay padded to the widest row)."""
    nodes, confidence, state = tensors["tree_nodes"], tensors["tree_confidence"], tensors["drafter_state"]
    offsets = offsets_of(tensors["tree_sizes"])
    rows = [
        DraftRowResult(
            tree=DraftTree(nodes[begin:end, 0], nodes[begin:end, 1], confidence[begin:end], nodes[begin:end, 2]),
            drafter_status=state[i, :, 0],
            cached_len=state[i, :, 1],
            proposals=tensors["proposals"][i],
            proposal_probs=tensors["proposal_probs"][i],
            prompt_logprob=tensors["prompt_logprob"][i],
            num_scored=state[i, :, 2],
        )
        for i, (begin, end) in enumerate(pairwise(offsets))
    ]
    return DraftResult(rows, int(tensors["draft_info"][0]))
