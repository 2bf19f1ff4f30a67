"""Step calls and results."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from drafthouse.engine.contract import GrowthStop, RowResult, RowStatus, StepCall, StepResult, StepRow
from drafthouse.triton.codec.envelope import Array, Tensors
from drafthouse.triton.codec.rows import (
    MASK64,
    from_json,
    json_bytes,
    offsets_of,
    pack_release,
    pack_rows,
    unpack_sampling,
)
from drafthouse.triton.schema import ResultColumn, RowColumn


def _parents_of(row: StepRow) -> NDArray[np.int32]:
    if row.parents is not None:
        return row.parents
    return np.arange(-1, len(row.tokens) - 1, dtype=np.int32)


def pack_step(call: StepCall, release_uids: Sequence[int] = ()) -> Tensors:
    """A step call as an engine's sections (`schema.ENGINE`), without the lease secret."""
    if not call.rows:
        return pack_release({}, release_uids)
    tensors = pack_rows(call.rows, (row.num_committed for row in call.rows))
    nodes = np.empty((sum(len(row.tokens) for row in call.rows), 2), np.int32)
    nodes[:, 0] = np.concatenate([row.tokens for row in call.rows])
    nodes[:, 1] = np.concatenate([_parents_of(row) for row in call.rows])
    tensors["nodes"] = nodes
    tensors["options"] = np.array([call.num_steps, call.num_candidates, call.return_logprobs, call.return_prompt_logprob], np.int32)
    return pack_release(tensors | _pack_growth(call), release_uids)


def _pack_growth(call: StepCall) -> Tensors:
    if call.stop is None:
        return {}
    stop = np.array([call.stop.slope, call.stop.intercept, call.stop.min_chance], np.float32)
    return {"row_chances": np.array([row.chance for row in call.rows], np.float32), "growth_stop": stop}


def unpack_step(tensors: Mapping[str, Array]) -> StepCall:
    """The inverse of `pack_step`; a call without rows has none."""
    if "rows" not in tensors:
        return StepCall(())
    table = tensors["rows"].tolist()
    offsets = offsets_of(tensors["rows"][:, RowColumn.NUM_TOKENS])
    nodes = tensors["nodes"]
    chances = tensors["row_chances"].tolist() if "row_chances" in tensors else [1.0] * len(table)
    rows = [
        StepRow(
            request_uid=row[RowColumn.REQUEST_UID] & MASK64,
            prefix_len=row[RowColumn.PREFIX_LEN],
            tokens=np.ascontiguousarray(nodes[begin:end, 0]),
            num_committed=row[RowColumn.COUNT],
            parents=np.ascontiguousarray(nodes[begin:end, 1]),
            sampling=sampling,
            chance=chance,
        )
        for row, begin, end, sampling, chance in zip(table, offsets, offsets[1:], unpack_sampling(tensors), chances, strict=False)
    ]
    num_steps, num_candidates, logprobs, prompt_logprob = tensors["options"].tolist()
    stop = GrowthStop(*tensors["growth_stop"].tolist()) if "growth_stop" in tensors else None
    return StepCall(rows, num_steps, num_candidates, bool(logprobs), bool(prompt_logprob), stop)


def pack_step_result(result: StepResult) -> Tensors:
    """An engine's answer's sections (`schema.ENGINE`)."""
    rows = result.rows
    width = 1 + max((row.candidate_ids.shape[1] for row in rows), default=0)
    num_nodes = sum(len(row.sampled) for row in rows)
    tokens = np.zeros((num_nodes, width), np.int32)
    scores = np.zeros((num_nodes, width), np.float32)
    begin = 0
    for row in rows:
        end = begin + len(row.sampled)
        tokens[begin:end, 0], tokens[begin:end, 1:] = row.sampled, row.candidate_ids if end > begin else 0
        scores[begin:end, 0], scores[begin:end, 1:] = row.logprobs, row.candidate_probs if end > begin else 0.0
        begin = end
    table = [(int(row.status), row.cached_len, len(row.sampled), row.num_scored) for row in rows]
    errors = {str(i): row.error for i, row in enumerate(rows) if row.error}
    info = (result.engine_epoch, result.session_ns, result.slots_free, result.slots_total, len(rows))
    return {
        "engine_info": np.array(info, np.int64),
        "row_results": np.array(table, np.int64).reshape(-1, len(ResultColumn)),
        "row_logprobs": np.array([row.prompt_logprob for row in rows], np.float32),
        "node_tokens": tokens,
        "node_logprobs": scores,
        "row_errors": json_bytes(errors),
    }


def unpack_step_result(tensors: Mapping[str, Array]) -> StepResult:
    """The inverse of `pack_step_result`."""
    epoch, session_ns, slots_free, slots_total, _ = tensors["engine_info"].tolist()
    tokens, scores = tensors["node_tokens"], tensors["node_logprobs"]
    errors = from_json(tensors["row_errors"])
    logprobs = tensors["row_logprobs"].tolist()
    rows, begin = [], 0
    for i, (status, cached_len, num_outputs, num_scored) in enumerate(tensors["row_results"].tolist()):
        end = begin + num_outputs
        rows.append(
            RowResult(
                status=RowStatus(status),
                cached_len=cached_len,
                sampled=tokens[begin:end, 0],
                logprobs=scores[begin:end, 0],
                candidate_ids=tokens[begin:end, 1:],
                candidate_probs=scores[begin:end, 1:],
                prompt_logprob=logprobs[i],
                num_scored=num_scored,
                error=errors.get(str(i), ""),
            )
        )
        begin = end
    return StepResult(rows, epoch, session_ns, slots_free, slots_total)
