"""``drafthouse.sampling.choose`` on the device: logits stay where they are, only what was chosen leaves.

Every rule is the CPU path's: the same noise, filters, ties and candidates. Sums run in another order there, so the two agree up to
rounding: a choice can differ where two scores, or a nucleus and its limit, are that close.
"""

from collections.abc import Sequence

import numpy as np
import torch

from drafthouse.engine.tensorrt.philox import gumbel_rows
from drafthouse.sampling.choose import Ban, Choices, FloatArray, IntArray, NodeGroup, Segment, group_segments

_NEVER = -torch.inf


class TorchChooser:
    """Chooses tokens of one vocabulary from logits ``[M, V]`` (float32) on ``device``."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device

    def choose(
        self,
        logits: torch.Tensor,
        segments: Sequence[Segment],
        num_candidates: int = 0,
        bans: Sequence[Ban] = (),
        with_logprobs: bool = True,
    ) -> Choices:
        """As ``sampling.choose.Chooser.choose``."""
        allowed = self._without_banned(logits, bans)
        count = max(1, num_candidates)
        top = torch.zeros((len(logits), count), dtype=torch.int64, device=self._device)
        probs = torch.zeros((len(logits), num_candidates), device=self._device)
        for group in group_segments(segments):
            nodes = self._indices(group.nodes())
            temperature = float(group.temperature)
            scaled = allowed[nodes] / temperature
            best = _best(self._ranked(group, scaled), scaled, count)
            top[nodes] = best
            if num_candidates:
                plain = logits[nodes] / temperature if bans else scaled
                probs[nodes] = torch.exp(plain.gather(1, best) - torch.logsumexp(plain, 1, keepdim=True))
        sampled = top[:, :1]
        # Without log-probabilities a finite logit becomes 0, and one that is not becomes NaN.
        picked = logits.gather(1, sampled)
        logprobs = picked - torch.logsumexp(logits, 1, keepdim=True) if with_logprobs else picked * 0.0
        tokens = top.to(torch.int32).cpu().numpy()
        figures = torch.cat((logprobs, probs), 1).cpu().numpy()
        return Choices(tokens[:, 0], figures[:, 0], tokens[:, :num_candidates], figures[:, 1:])

    def log_probs_of(self, logits: torch.Tensor, token_ids: IntArray) -> FloatArray:
        """Natural log-softmax ``[n]`` of ``logits [n, V]`` at one token id per row."""
        picked = logits.gather(1, self._indices(token_ids)[:, None])
        result: FloatArray = (picked - torch.logsumexp(logits, 1, keepdim=True))[:, 0].cpu().numpy()
        return result

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The rows of all ``parts``, one after the other."""
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))

    def _indices(self, values: IntArray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(self._device, non_blocking=True)

    def _without_banned(self, logits: torch.Tensor, bans: Sequence[Ban]) -> torch.Tensor:
        """The logits themselves, or a copy with -inf at what is banned."""
        if not bans:
            return logits
        nodes = np.repeat([ban.node for ban in bans], [len(ban.token_ids) for ban in bans])
        token_ids = np.concatenate([ban.token_ids for ban in bans])
        scores = logits.clone()
        scores[self._indices(nodes), self._indices(token_ids)] = _NEVER
        return scores

    def _ranked(self, group: NodeGroup, scaled: torch.Tensor) -> torch.Tensor:
        """What to rank the group's nodes by: noisy scores, -inf where filtered; for greedy requests the logits."""
        params = group.segments[0].params
        if params.temperature == 0:
            return scaled
        seeds = [part.params.seed for part in group.segments for _ in part.positions]
        positions = [position for part in group.segments for position in part.positions.tolist()]
        noisy = scaled + gumbel_rows(seeds, positions, self._vocab_size, self._device)
        if params.top_k > 0 or params.top_p < 1.0:
            noisy = torch.where(_survives(scaled, params.top_k, params.top_p), noisy, _NEVER)
        return noisy


def _survives(scaled: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """``[n, V]``: what passes top-k and then top-p; see ``sampling.filters.surviving_tokens``."""
    ordered, order = torch.sort(scaled, dim=1, descending=True, stable=True)  # stable: equal scores by token id
    keep = ordered > _NEVER
    if top_k > 0:
        keep[:, top_k:] = False
    if top_p < 1.0:
        weights = torch.exp(ordered - ordered[:, :1]).to(torch.float64) * keep
        before = torch.cumsum(weights, 1) - weights
        keep &= before < top_p * weights.sum(1, keepdim=True)
    return torch.zeros_like(keep).scatter_(1, order, keep)


def _best(ranked: torch.Tensor, fallback: torch.Tensor, count: int) -> torch.Tensor:
    """Token ids ``[n, count]`` from the highest rank down; where only -inf is left, the highest ``fallback`` not yet taken."""
    best = [ranked.argmax(1, keepdim=True)]  # the first of equal ones
    if count > 1:
        ranked, fallback = ranked.clone(), fallback.clone()
    for _ in range(1, count):
        ranked.scatter_(1, best[-1], _NEVER)
        fallback.scatter_(1, best[-1], _NEVER)
        place = ranked.argmax(1, keepdim=True)
        best.append(torch.where(ranked.gather(1, place) == _NEVER, fallback.argmax(1, keepdim=True), place))
    return torch.cat(best, 1)
