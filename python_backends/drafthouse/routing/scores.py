"""The router's arithmetic as pure functions, vectorised over requests. R = requests, D = drafters, K = trunk length.

The two signals lie side by side on a first axis of length 2: confidence (the drafter's own probability), then agreement (cosine
similarity with the target's token).
"""

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Mask = NDArray[np.bool_]
TINY = np.float32(1e-12)


def normalise_rows(embeddings: F32) -> F32:
    """Scale every row to length 1, so that a dot product is a cosine; a zero row stays zero. [vocab, dim]"""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit: F32 = (embeddings / np.maximum(norms, TINY)).astype(np.float32)
    return unit


def relative_likelihood(prompt_logprob: F32, sharpness: float, most_behind: float) -> F32:
    """How well each drafter predicted the prompt, on a scale on which the best one has 1: [R, D].

    Each nat per token behind divides by exp(sharpness), for at most ``most_behind`` nats. A drafter whose likelihood is NaN (not
    scored) counts like the worst scored one: what is unknown displaces nothing known. When none is scored all have 1.

    Args:
        prompt_logprob: mean nats per prompt token, NaN where not scored, [R, D].
    """
    scored = np.isfinite(prompt_logprob)
    best = np.where(scored, prompt_logprob, -np.inf).max(axis=1, keepdims=True)
    worst = np.where(scored, prompt_logprob, np.inf).min(axis=1, keepdims=True)
    some = scored.any(axis=1, keepdims=True)
    behind = np.where(scored, prompt_logprob, np.where(some, worst, 0)) - np.where(some, best, 0)
    relative: F32 = np.exp(np.float32(sharpness) * np.maximum(behind, np.float32(-most_behind)))
    return relative


def agreement(unit_embeddings: F32, proposals: I32, target_tokens: I32) -> F32:
    """How near each proposal came to the target's token: 1 when equal, else max(0, cosine of the embeddings).

    Args:
        unit_embeddings: rows of length 1, [vocab, dim].
        proposals: [R, D, K]; target_tokens: [R, K]. Ids outside the table agree only with themselves.
    """
    target = np.broadcast_to(target_tokens[:, None, :], proposals.shape)
    is_equal = proposals == target
    near: F32 = is_equal.astype(np.float32)
    # Only where they differ: most proposals are right, and reading embeddings is what takes time.
    wrong = np.flatnonzero(~is_equal & (proposals >= 0) & (target >= 0))
    mine, wanted = proposals.reshape(-1)[wrong], target.reshape(-1)[wrong]
    inside = np.maximum(mine, wanted) < len(unit_embeddings)
    cosine = (unit_embeddings[mine[inside]] * unit_embeddings[wanted[inside]]).sum(axis=1)
    near.reshape(-1)[wrong[inside]] = np.maximum(cosine, 0)
    return near


def harmonic(signals: F32) -> F32:
    """Harmonic mean of the two signals, 0 where both are 0: high only when both are. [2, ...] -> [...]"""
    confidence, near = signals
    mean: F32 = 2 * confidence * near / np.maximum(confidence + near, TINY)
    return mean


def beside_peers(evidence: F32, expected: F32, counted: Mask, share: float) -> F32:
    """Take out of the evidence what all who proposed at a position have in common: some text is hard for everyone.

    A drafter that was asked only where the text was hard would otherwise look worse than one that was asked where it was easy.

    Args:
        evidence: [2, R, D, K]; expected: what the drafters were known for, [2, R, D]; counted: [R, D, K].
        share: how much of the common deviation from what was expected is taken out, 0 to 1.
    """
    num_peers = counted.sum(axis=1, keepdims=True)
    surprise = ((evidence - expected[..., None]) * counted).sum(axis=2, keepdims=True)
    factor = np.where(num_peers > 1, np.float32(share) / np.maximum(num_peers, 1), 0)
    adjusted: F32 = evidence - (surprise * factor).astype(np.float32)
    return adjusted


def later_weights(reached: Mask, decay: float) -> F32:
    """Weight of each verified position when all of them have been seen: decay^(number of later ones), [R, K] -> [R, K]."""
    num_later = np.cumsum(reached[:, ::-1], axis=1, dtype=np.float32)[:, ::-1] - reached
    weights: F32 = np.float32(decay) ** num_later
    return weights


def running_mean(mean: F32, evidence: F32, weights: F32, held: F32, total: F32) -> F32:
    """Weighted mean of what was known and what is new: [2, R, D].

    Args:
        mean: so far, [2, R, D], worth ``held`` positions, [R, D].
        evidence: [2, R, D, K] with ``weights`` [R, D, K], 0 = does not count.
        total: ``held`` and all weights together, [R, D].
    """
    updated: F32 = (mean * held + (evidence * weights).sum(axis=3)) / np.maximum(total, TINY)
    return updated


def best_first(values: F32) -> NDArray[np.intp]:
    """Rank of each drafter, 0 = highest; ties go to the lower index: [R, D] -> [R, D]."""
    return np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1, kind="stable")
