"""How the next token of one request is chosen."""

from dataclasses import dataclass

NO_TOKEN = -1  # stands for "no such token id" in integer columns


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request, already validated at the front door.

    The choice they describe is a pure function of (logits, path, these parameters, absolute position): see
    ``drafthouse.sampling``. That is what makes the text independent of drafters, batch and scheduling.
    """

    temperature: float = 0.0  # 0 = greedy
    top_k: int = 0  # 0 = all tokens
    top_p: float = 1.0  # nucleus mass in (0, 1]
    seed: int = 0  # uint64, the key of the counter-based noise
    end_ids: tuple[int, ...] = ()  # the tokens that end the text; Llama 3 has several
    min_end_position: int = 0  # end_ids are banned at absolute positions below this (prompt_len + min_tokens)
    bad_words: tuple[bytes, ...] = ()  # UTF-8; the generated text never contains one of these
