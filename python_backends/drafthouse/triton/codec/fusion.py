"""Draft calls and results."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.tree import ROOT, DraftTree
from drafthouse.fusion.contract import DraftCall, DraftPlan, DraftResult, DraftRow, DraftRowResult
from drafthouse.triton.codec.envelope import Array, Tensors
from drafthouse.triton.codec.rows import (
    MASK64,
    offsets_of,
    pack_release,
    pack_rows,
    unpack_release,
    unpack_sampling,
)
from drafthouse.triton.schema import PlanOption, RowColumn


def pack_draft(call: DraftCall) -> Tensors:
    """A draft call as fusion's sections (`schema.FUSION`), without the lease secret."""
    if not call.rows:
        return pack_release({}, call.release_uids)
    tensors = pack_rows(call.rows, (row.num_draft_tokens for row in call.rows))
    tensors["tokens"] = np.concatenate([row.tokens for row in call.rows]).astype(np.int32)
    tensors["weights"] = np.stack([row.weights for row in call.rows]).astype(np.float32)
    unknown = np.full(len(call.rows[0].weights), np.nan, np.float32)
    if any(row.scores is not None for row in call.rows):
        tensors["scores"] = np.stack([unknown if row.scores is None else row.scores for row in call.rows]).astype(np.float32)
    if any(len(row.base) for row in call.rows):
        tensors["base_shape"] = np.array([(len(row.base), row.leaf) for row in call.rows], np.int32)
        tensors["base_nodes"], tensors["base_chances"] = _pack_trees([row.base for row in call.rows])
    _pack_plan(call.plan, tensors)
    return pack_release(tensors, call.release_uids)


def _pack_plan(plan: DraftPlan, tensors: Tensors) -> None:
    tensors["plan"] = np.array([plan.fuse_every, plan.num_siblings, plan.keep_divergent, plan.max_nodes], np.int32)
    tensors["min_chance"] = np.array([plan.min_chance], np.float32)
    if plan.calibration is not None:
        tensors["calibration"] = plan.calibration.astype(np.float32)


def _unpack_plan(tensors: Mapping[str, Array]) -> DraftPlan:
    options = tensors["plan"].tolist()
    return DraftPlan(
        fuse_every=options[PlanOption.FUSE_EVERY],
        num_siblings=options[PlanOption.NUM_SIBLINGS],
        keep_divergent=bool(options[PlanOption.KEEP_DIVERGENT]),
        max_nodes=options[PlanOption.MAX_NODES],
        min_chance=float(tensors["min_chance"][0]),
        calibration=tensors.get("calibration"),
    )


def _pack_trees(trees: Sequence[DraftTree]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """All trees' nodes one after the other: (token, parent, source, rank) and (chance, probability)."""
    nodes = np.concatenate([np.stack((tree.tokens, tree.parents, tree.source, tree.ranks), axis=1) for tree in trees])
    chances = np.concatenate([np.stack((tree.confidence, tree.probs), axis=1) for tree in trees])
    return nodes.astype(np.int32), chances.astype(np.float32)


def _unpack_tree(nodes: Array, chances: Array) -> DraftTree:
    return DraftTree(nodes[:, 0], nodes[:, 1], chances[:, 0], nodes[:, 2], chances[:, 1], nodes[:, 3])


def unpack_draft(tensors: Mapping[str, Array]) -> DraftCall:
    """The inverse of `pack_draft`."""
    release_uids = unpack_release(tensors)
    if "rows" not in tensors:
        return DraftCall((), release_uids)
    offsets = offsets_of(tensors["rows"][:, RowColumn.NUM_TOKENS])
    bases = _unpack_bases(tensors)
    rows = [
        DraftRow(
            request_uid=row[RowColumn.REQUEST_UID] & MASK64,
            prefix_len=row[RowColumn.PREFIX_LEN],
            tokens=tensors["tokens"][begin:end],
            num_draft_tokens=row[RowColumn.COUNT],
            weights=weights,
            sampling=sampling,
            scores=tensors["scores"][i] if "scores" in tensors else None,
            base=bases[i][0] if bases else DraftTree(),
            leaf=bases[i][1] if bases else ROOT,
        )
        for i, (row, begin, end, weights, sampling) in enumerate(
            zip(tensors["rows"].tolist(), offsets, offsets[1:], tensors["weights"], unpack_sampling(tensors), strict=False)
        )
    ]
    return DraftCall(rows, release_uids, _unpack_plan(tensors))


def _unpack_bases(tensors: Mapping[str, Array]) -> list[tuple[DraftTree, int]]:
    if "base_shape" not in tensors:
        return []
    offsets = offsets_of(tensors["base_shape"][:, 0])
    places = zip(pairwise(offsets), tensors["base_shape"][:, 1].tolist(), strict=True)
    return [(_unpack_tree(tensors["base_nodes"][begin:end], tensors["base_chances"][begin:end]), leaf) for (begin, end), leaf in places]


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
    if not rows:
        trees = [DraftTree()]  # so that there is something to concatenate
    nodes, chances = _pack_trees(trees)
    width = max((len(row.trunk) for row in rows), default=0)
    trunks = np.full((len(rows), width), ROOT, np.int32)
    for i, row in enumerate(rows):
        trunks[i, : len(row.trunk)] = row.trunk
    state = np.zeros((len(rows), num_drafters, 3), np.int32)
    for i, row in enumerate(rows):
        state[i] = np.stack((row.drafter_status, row.cached_len, row.num_scored), axis=1)
    ids, probs = pack_proposals([r.proposals for r in rows], [r.proposal_probs for r in rows], num_drafters)
    return {
        "draft_info": np.array([result.draft_session_ns], np.int64),
        "tree_sizes": np.array([len(row.tree) for row in rows], np.int32),
        "tree_nodes": nodes,
        "tree_chances": chances,
        "trunks": trunks,
        "drafter_state": state,
        "prompt_logprob": np.array([row.prompt_logprob for row in rows], np.float32).reshape(-1, num_drafters),
        "proposals": ids,
        "proposal_probs": probs,
    }


def unpack_draft_result(tensors: Mapping[str, Array]) -> DraftResult:
    """The inverse of `pack_draft_result` (proposals stay padded to the widest row)."""
    nodes, chances, state = tensors["tree_nodes"], tensors["tree_chances"], tensors["drafter_state"]
    offsets = offsets_of(tensors["tree_sizes"])
    rows = [
        DraftRowResult(
            tree=_unpack_tree(nodes[begin:end], chances[begin:end]),
            trunk=_without_padding(tensors["trunks"][i]),
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


def _without_padding(trunk: Array) -> NDArray[np.int32]:
    nodes: NDArray[np.int32] = trunk[trunk != ROOT]
    return nodes
