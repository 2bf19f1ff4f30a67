"""The router's table of token embeddings: how alike are the token a drafter proposed and the one the target chose?

CoSine (arXiv 2503.10325, routing) compares them by the cosine of the target's embeddings. The router needs only the angles, so rows
have length one and at most 64 dimensions: the projection onto the first right singular vectors, which keeps dot products best.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drafthouse_build.checkpoint import Checkpoint, FloatArray, block
from drafthouse_build.weight_store import spans

MAX_DIMS = 64
TABLE_NAME = "token_embeddings.npy"
REPORT_NAME = "token_embeddings.json"
_SAMPLED_PAIRS = 20_000
_SAMPLE_BYTES = 1 << 25


@dataclass(frozen=True)
class TableReport:
    """How well the projected table keeps cosine similarities, over random pairs of different tokens."""

    weights_sha256: str
    num_tokens: int
    source_dims: int
    dims: int
    kept_variance: float
    cosine_correlation: float
    cosine_mean_abs_error: float


def build_router_table(checkpoint: Checkpoint, folder: Path) -> bool:
    """Writes `token_embeddings.npy` (float32 `[V, ≤ 64]`) and its report into `folder`; False when those there are current."""
    report_file = folder / REPORT_NAME
    if (folder / TABLE_NAME).is_file() and _stored_source(report_file) == checkpoint.weights_sha256:
        return False
    weights, name = checkpoint.weights, "model.embed_tokens.weight"
    table, report = _project(lambda span: block(weights, name, rows=span), weights.shapes[name], checkpoint.weights_sha256)
    folder.mkdir(parents=True, exist_ok=True)
    report_file.unlink(missing_ok=True)
    np.save(folder / TABLE_NAME, table)
    report_file.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return True


def project(embeddings: FloatArray, weights_sha256: str) -> tuple[FloatArray, TableReport]:
    """Projects `[V, H]` to `[V, min(H, 64)]` with rows of length one, and measures what that did to the cosines."""
    return _project(lambda span: embeddings[span], embeddings.shape, weights_sha256)


def _project(read: Callable[[slice], FloatArray], shape: tuple[int, ...], weights_sha256: str) -> tuple[FloatArray, TableReport]:
    """As `project`, from a table that is read in blocks of rows: it need not fit into memory."""
    num_rows, width = shape
    # Eigenvectors of the H × H Gram matrix are the right singular vectors, without a decomposition of the V × H matrix.
    gram = np.zeros((width, width), np.float64)
    for span in spans(num_rows, 8 * width):
        doubled = _normalized(read(span)).astype(np.float64)
        gram += doubled.T @ doubled
    values, vectors = np.linalg.eigh(gram)
    dims = min(MAX_DIMS, width)
    axes = vectors[:, ::-1][:, :dims].astype(np.float32)
    pairs = _sampled_pairs(num_rows, width)
    sampled = np.empty((*pairs.shape, width), np.float32)
    table = np.empty((num_rows, dims), np.float32)
    for span in spans(num_rows, 8 * width):
        rows = _normalized(read(span))
        table[span] = _normalized(rows @ axes)
        is_here = (pairs >= span.start) & (pairs < span.stop)
        sampled[is_here] = rows[pairs[is_here] - span.start]
    exact = np.einsum("nd,nd->n", *sampled)
    approximate = np.einsum("nd,nd->n", *table[pairs])
    report = TableReport(
        weights_sha256=weights_sha256,
        num_tokens=num_rows,
        source_dims=width,
        dims=dims,
        kept_variance=float(values[-dims:].sum() / values.sum()),
        cosine_correlation=float(np.corrcoef(exact, approximate)[0, 1]),
        cosine_mean_abs_error=float(np.abs(exact - approximate).mean()),
    )
    return table, report


def _normalized(rows: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    normalized: FloatArray = rows / np.where(lengths == 0, np.float32(1), lengths)
    return normalized


def _sampled_pairs(num_rows: int, width: int) -> NDArray[np.int64]:
    """`[2, pairs]`, rows that differ: no more than whose embeddings take little memory too."""
    num_pairs = max(1, min(_SAMPLED_PAIRS, _SAMPLE_BYTES // (8 * width)))
    random = np.random.default_rng(0)
    first = random.integers(0, num_rows, num_pairs)
    return np.stack([first, (first + random.integers(1, num_rows, num_pairs)) % num_rows])


def _stored_source(report_file: Path) -> str | None:
    try:
        stored = json.loads(report_file.read_text(encoding="utf-8")).get("weights_sha256")
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, str) else None
