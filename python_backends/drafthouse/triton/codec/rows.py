"""What engine and fusion calls share: rows, sampling parameters, releases, JSON blobs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import NO_TOKEN, SamplingParams
from drafthouse.engine.contract import StepRow
from drafthouse.fusion.contract import DraftRow
from drafthouse.triton.codec.envelope import Array, Tensors
from drafthouse.triton.schema import ParamColumn, RowColumn

MASK64 = (1 << 64) - 1
_SIGN64 = 1 << 63


def _as_int64(value: int) -> int:
    """The int64 with the same bits as this uint64."""
    return value - (1 << 64) if value & _SIGN64 else value


def json_bytes(value: object) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8)


def from_json(array: Array) -> Any:  # noqa: ANN401 - JSON is what it is
    return json.loads(array.tobytes().decode())


def offsets_of(counts: Array) -> list[int]:
    return [0, *np.cumsum(counts).tolist()]


def pack_rows(rows: Sequence[StepRow | DraftRow], counts: Iterable[int]) -> Tensors:
    table = np.array(
        [
            (
                _as_int64(row.request_uid),
                row.prefix_len,
                len(row.tokens),
                count,
                _as_int64(row.sampling.seed),
                row.sampling.top_k,
                row.sampling.end_ids[0] if row.sampling.end_ids else NO_TOKEN,
                row.sampling.min_end_position,
            )
            for row, count in zip(rows, counts, strict=True)
        ],
        np.int64,
    )
    params = np.array([(row.sampling.temperature, row.sampling.top_p) for row in rows], np.float32)
    tensors: Tensors = {"rows": table, "row_params": params}
    if any(row.sampling.bad_words for row in rows):
        tensors["bad_words"] = json_bytes([[w.decode() for w in row.sampling.bad_words] for row in rows])
    more_ends = [(index, end_id) for index, row in enumerate(rows) for end_id in row.sampling.end_ids[1:]]
    if more_ends:
        tensors["more_end_ids"] = np.array(more_ends, np.int32)
    return tensors


def unpack_sampling(tensors: Mapping[str, Array]) -> list[SamplingParams]:
    bad_words = from_json(tensors["bad_words"]) if "bad_words" in tensors else None
    more_ends: dict[int, list[int]] = {}
    for row_index, end_id in tensors["more_end_ids"].tolist() if "more_end_ids" in tensors else ():
        more_ends.setdefault(row_index, []).append(end_id)
    return [
        SamplingParams(
            temperature=params[ParamColumn.TEMPERATURE],
            top_k=row[RowColumn.TOP_K],
            top_p=params[ParamColumn.TOP_P],
            seed=row[RowColumn.SEED] & MASK64,
            end_ids=() if row[RowColumn.END_ID] == NO_TOKEN else (row[RowColumn.END_ID], *more_ends.get(i, ())),
            min_end_position=row[RowColumn.MIN_END_POSITION],
            bad_words=tuple(w.encode() for w in bad_words[i]) if bad_words else (),
        )
        for i, (row, params) in enumerate(zip(tensors["rows"].tolist(), tensors["row_params"].tolist(), strict=True))
    ]


def pack_release(tensors: Tensors, release_uids: Sequence[int]) -> Tensors:
    if release_uids:
        tensors["release_uids"] = np.array(release_uids, np.uint64)
    return tensors


def unpack_release(tensors: Mapping[str, Array]) -> list[int]:
    """The request uids to release in this call, [] when there are none."""
    return tensors["release_uids"].tolist() if "release_uids" in tensors else []
