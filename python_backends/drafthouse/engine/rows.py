"""Checks what a caller sends, one row at a time: a malformed row gets a message, its neighbours never notice."""

import math
from dataclasses import dataclass

import numpy as np

from drafthouse.core.errors import ClientError, invalid, unsupported
from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import EngineLimits, StepCall, StepRow

MAX_CANDIDATES = 64
_MAX_SEED = (1 << 64) - 1


def num_extensions(num_steps: int) -> int:
    """Nodes that the engine adds to a row at most."""
    return max(0, num_steps - 1)


@dataclass(frozen=True, slots=True)
class RowChecker:
    """Knows the limits of one engine."""

    limits: EngineLimits
    has_vocabulary: bool  # without token bytes there are no bad words

    def problem(self, row: StepRow, call: StepCall) -> str:
        """Why ``row`` cannot be run, in the user's form of an error; empty when it can."""
        try:
            self._check_call(call)
            self._check_tokens(row, call.num_steps)
            self._check_tree(row, is_chain=call.num_steps > 1)
            if not 0 <= row.chance <= 1:
                raise invalid("chance", row.chance, "0 to 1")
            self._check_sampling(row.sampling)
        except ClientError as error:
            return str(error)
        return ""

    def _check_call(self, call: StepCall) -> None:
        if not 0 <= call.num_steps <= self.limits.max_step_tokens:
            raise invalid("num_steps", call.num_steps, f"0 to {self.limits.max_step_tokens}")
        most = min(MAX_CANDIDATES, self.limits.vocab_size)
        if not 0 <= call.num_candidates <= most:
            raise invalid("num_candidates", call.num_candidates, f"0 to {most}")
        stop = call.stop
        if stop is not None and not (math.isfinite(stop.slope) and math.isfinite(stop.intercept) and 0 <= stop.min_chance <= 1):
            raise invalid("stop", (stop.slope, stop.intercept, stop.min_chance), "finite slope and intercept, min_chance 0 to 1")

    def _check_tokens(self, row: StepRow, num_steps: int) -> None:
        limits, tokens = self.limits, row.tokens
        if tokens.ndim != 1 or tokens.dtype != np.int32 or not len(tokens):
            raise invalid("tokens", f"{tokens.dtype}{list(tokens.shape)}", "at least one token id, int32[n]")
        most = limits.max_step_tokens - num_extensions(num_steps)
        if len(tokens) > most:
            raise invalid("tokens", f"{len(tokens)} tokens", f"up to {most} per call (with {num_steps} steps): send longer input in chunks")
        # Seen as unsigned, a negative id is a huge one: one pass finds both.
        if tokens.view(np.uint32).max() >= limits.vocab_size:
            worst = next(int(token) for token in tokens if not 0 <= token < limits.vocab_size)
            raise invalid("tokens", worst, f"0 to {limits.vocab_size - 1}")
        if not 1 <= row.num_committed <= len(tokens):
            raise invalid("num_committed", row.num_committed, f"1 to {len(tokens)} (the number of tokens)")
        if row.prefix_len < 0:
            raise invalid("prefix_len", row.prefix_len, "0 or more")
        if row.prefix_len + row.num_committed > limits.usable_context:
            committed = row.prefix_len + row.num_committed
            raise invalid("prefix_len", f"{committed} committed tokens", f"up to {limits.usable_context} (usable context)")

    def _check_tree(self, row: StepRow, is_chain: bool) -> None:
        if row.parents is None:
            return
        parents = row.parents.tolist()
        if len(parents) != len(row.tokens):
            raise invalid("parents", f"{len(parents)} parents", f"{len(row.tokens)} (one per token)")
        committed = row.num_committed
        for node, parent in enumerate(parents):
            low = node - 1 if is_chain or node < committed else committed - 1
            if not low <= parent < max(node, low + 1):
                raise invalid("parents", f"{parent} of token {node}", f"{low} to {max(node - 1, low)}")

    def _check_sampling(self, params: SamplingParams) -> None:
        if not (math.isfinite(params.temperature) and params.temperature >= 0):
            raise invalid("temperature", params.temperature, "0 or a positive number")
        if params.top_k < 0:
            raise invalid("top_k", params.top_k, "0 (all tokens) or more")
        if not 0 < params.top_p <= 1:
            raise invalid("top_p", params.top_p, "above 0, up to 1")
        if not 0 <= params.seed <= _MAX_SEED:
            raise invalid("seed", params.seed, "0 to 2**64 - 1")
        for end_id in params.end_ids:
            if not 0 <= end_id < self.limits.vocab_size:
                raise invalid("end_ids", end_id, f"0 to {self.limits.vocab_size - 1}")
        if params.bad_words and not self.has_vocabulary:
            raise unsupported("bad_words", len(params.bad_words), "none: this engine was loaded without a tokenizer.json")
        if not all(params.bad_words):
            raise invalid("bad_words", "an empty word", "words of at least one byte")
