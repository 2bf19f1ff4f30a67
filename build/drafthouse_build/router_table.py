"""The router's table of token embeddings: how alike are the token a drafter proposed and the one the target chose?

CoSine (arXiv 2503.10325, routing) compares them by the cosine of the target's embeddings. The router needs only the angles, so rows
have length one and at most 64 dimensions: the projection onto the first right singular vectors, which keeps dot products best.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from drafthouse_build.checkpoint import Checkpoint, FloatArray

MAX_DIMS = 64
TABLE_NAME = "token_embeddings.npy"
REPORT_NAME = "token_embeddings.json"
_SAMPLED_PAIRS = 20_000


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
    table, report = project(checkpoint.weights["model.embed_tokens.weight"], checkpoint.weights_sha256)
    folder.mkdir(parents=True, exist_ok=True)
    report_file.unlink(missing_ok=True)
    np.save(folder / TABLE_NAME, table)
    report_file.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return True


def project(embeddings: FloatArray, weights_sha256: str) -> tuple[FloatArray, TableReport]:
    """Projects `[V, H]` to `[V, min(H, 64)]` with rows of length one, and measures what that did to the cosines."""
    rows = _normalized(embeddings)
    # Eigenvectors of the H × H Gram matrix are the right singular vectors, without a decomposition of the V × H matrix.
    values, vectors = np.linalg.eigh(rows.T.astype(np.float64) @ rows.astype(np.float64))
    dims = min(MAX_DIMS, rows.shape[1])
    table = _normalized(rows @ vectors[:, ::-1][:, :dims].astype(np.float32))
    exact, approximate = _sampled_cosines(rows, table)
    report = TableReport(
        weights_sha256=weights_sha256,
        num_tokens=rows.shape[0],
        source_dims=rows.shape[1],
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


def _sampled_cosines(rows: FloatArray, table: FloatArray) -> tuple[FloatArray, FloatArray]:
    random = np.random.default_rng(0)
    first = random.integers(0, len(rows), _SAMPLED_PAIRS)
    second = (first + random.integers(1, len(rows), _SAMPLED_PAIRS)) % len(rows)
    return np.einsum("nd,nd->n", rows[first], rows[second]), np.einsum("nd,nd->n", table[first], table[second])


def _stored_source(report_file: Path) -> str | None:
    try:
        stored = json.loads(report_file.read_text(encoding="utf-8")).get("weights_sha256")
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, str) else None
