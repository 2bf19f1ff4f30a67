"""New tokens become part of a request, and text that is safe to show goes to its client."""

import time
from collections.abc import Sequence

from drafthouse.pipeline.contract import FinishReason, OutputChunk
from drafthouse.pipeline.state import Outgoing, RequestState


def commit(state: RequestState, tokens: Sequence[int], sources: Sequence[int], log_probs: Sequence[float]) -> int:
    """Append the target's tokens until one of them ends the text; later ones are dropped and not counted.

    The token that ends the text (an end token, or the one that completes a stop word) counts as output and is among
    the output ids; its text is not shown. Before `min_tokens` tokens neither ends the text.

    Args:
        state: the request; not finished.
        tokens: the target's choices in order, at least one.
        sources: per token, the index of the drafter that had proposed it, -1 for the target alone.
        log_probs: per token, natural log.

    Returns:
        How many tokens were appended, at least 1.
    """
    state.last_token_time_ns = time.time_ns()
    state.first_token_time_ns = state.first_token_time_ns or state.last_token_time_ns
    outgoing = state.outgoing
    for count, (token, source, log_prob) in enumerate(zip(tokens, sources, log_probs, strict=True), start=1):
        state.tokens[state.num_tokens] = token
        state.num_tokens += 1
        outgoing.ids.append(token)
        outgoing.sources.append(source)
        outgoing.log_probs.append(log_prob)
        _advance_text(state, token)
        if state.finish_reason is not None:
            return count
    return len(tokens)


def _advance_text(state: RequestState, token: int) -> None:
    request, num_output = state.request, state.num_output_tokens
    if num_output > request.min_tokens and token in request.sampling.end_ids:
        state.finish_reason = FinishReason.STOP
        state.outgoing.text += state.detokenizer.flush()
        return
    piece = state.detokenizer.push(token, may_stop=num_output >= request.min_tokens)
    state.outgoing.text += piece.text
    if piece.stopped:
        state.finish_reason = FinishReason.STOP
    elif state.num_remaining == 0:
        state.finish_reason = FinishReason.LENGTH
        state.outgoing.text += state.detokenizer.flush()


def emit(state: RequestState) -> None:
    """Send what is due: the last chunk of a finished request, or new text of a stream.

    Tokens that have not become text yet (half a character, half a stop word) wait for the chunk that shows them.
    """
    if state.finish_reason is not None:
        state.sink.finish(_take_chunk(state))
    elif state.request.stream and state.outgoing.text and state.outgoing.ids:
        state.sink.send(_take_chunk(state))


def _take_chunk(state: RequestState) -> OutputChunk:
    outgoing, request = state.outgoing, state.request
    state.outgoing = Outgoing()
    return OutputChunk(
        text=outgoing.text,
        output_ids=tuple(outgoing.ids),
        token_sources=tuple(outgoing.sources),
        num_output_tokens=len(outgoing.ids),
        log_probs=tuple(outgoing.log_probs) if request.return_log_probs else (),
        finish_reason=state.finish_reason,
        perf=state.perf() if state.finished and request.return_perf_metrics else None,
    )
