"""The router's arithmetic as pure functions, vectorised over requests. R = requests, D = drafters, K = trunk length."""

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Mask = NDArray[np.bool_]


def normalise_rows(embeddings: F32) -> F32:
    """Scale every row to length 1, so that a dot product is a cosine; a zero row stays zero. [vocab, dim]"""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit: F32 = (embeddings / np.maximum(norms, np.float32(1e-12))).astype(np.float32)
    return unit


def first_scores(prompt_logprob: F32, prior: float, sharpness: float) -> F32:
    """What a drafter's likelihood of the prompt says about its worth, on the scale of verified scores.

    The best drafter of a request starts at ``prior``; each nat per token behind it divides by exp(sharpness). A drafter
    whose likelihood is NaN (not scored) counts like the worst scored one: what is unknown displaces nothing known. When
    none is scored all start at ``prior``.

    Args:
        prompt_logprob: mean nats per prompt token, NaN where not scored, [R, D].
    """
    scored = ~np.isnan(prompt_logprob)
    best = np.max(np.where(scored, prompt_logprob, -np.inf), axis=1, keepdims=True)
    worst = np.min(np.where(scored, prompt_logprob, np.inf), axis=1, keepdims=True)
    known = np.isfinite(best) & np.isfinite(worst)
    behind = np.where(known, np.where(scored, prompt_logprob, worst) - np.where(known, best, 0), 0)
    start: F32 = (prior * np.exp(sharpness * behind)).astype(np.float32)
    return start


def agreement(unit_embeddings: F32, proposals: I32, target_tokens: I32) -> F32:
    """How near each proposal came to the target's token: 1 when equal, else max(0, cosine of the embeddings).

    Args:
        unit_embeddings: rows of length 1, [vocab, dim].
        proposals: [R, D, K]; target_tokens: [R, K]. Ids outside the table agree only with themselves.
    """
    target = np.broadcast_to(target_tokens[:, None, :], proposals.shape)
    vocab_size = len(unit_embeddings)
    inside = (proposals >= 0) & (proposals < vocab_size) & (target >= 0) & (target < vocab_size)
    mine, wanted = (unit_embeddings[np.where(inside, tokens, 0)] for tokens in (proposals, target))
    cosine = np.where(inside, np.einsum("rdke,rdke->rdk", mine, wanted), 0)
    near: F32 = np.where(proposals == target, 1, np.maximum(cosine, 0)).astype(np.float32)
    return near


def harmonic(a: F32, b: F32) -> F32:
    """Harmonic mean, 0 where both are 0: high only when both are."""
    mean: F32 = (2 * a * b / np.maximum(a + b, np.float32(1e-12))).astype(np.float32)
    return mean


def decayed(scores: F32, evidence: F32, counted: Mask, decay: float) -> F32:
    """Exponential moving average over verified positions in order: score ← decay · score + (1 - decay) · evidence.

    Args:
        scores: [R, D]; evidence: [R, D, K]; counted: [R, D, K], positions that say something about that drafter.
    """
    num_later = np.cumsum(counted[..., ::-1], axis=2)[..., ::-1] - counted
    gained = np.where(counted, (1 - decay) * decay**num_later * evidence, 0).sum(axis=2)
    updated: F32 = (scores * decay ** counted.sum(axis=2) + gained).astype(np.float32)
    return updated


def choose(scores: F32, allowed: Mask, max_drafters: int, margin: float) -> F32:
    """Routing weights: the best allowed drafter gets 1, others their score relative to it, if close enough to count.

    A further drafter takes part only when its score is at least ``margin`` times the best one; ties go to the lower index.

    Args:
        scores: > 0, [R, D]; allowed: [R, D]. A request without an allowed drafter gets zeros only.
    """
    open_scores = np.where(allowed, scores, 0)
    best = np.maximum(open_scores.max(axis=1, keepdims=True), np.float32(1e-12))
    order = np.argsort(-open_scores, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    relative = open_scores / best
    weights: F32 = np.where((rank < max_drafters) & (relative >= margin) & allowed, relative, 0).astype(np.float32)
    return weights
