"""Every way in which a row can be malformed, and what the caller is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import GrowthStop, RowStatus, StepCall, StepRow
from fakes.engine_driver import step_row
from fakes.engine_session import fake_engine

USABLE = 24  # context 32, steps of up to 8 tokens


def sampling(**changes: Any) -> StepRow:  # noqa: ANN401 - fields of SamplingParams
    return step_row(1, [5], sampling=SamplingParams(**changes))


BAD_ROWS: list[tuple[StepRow, dict[str, Any], str]] = [
    (step_row(1, []), {}, "INVALID_ARG field=tokens value='int32[0]' allowed=at least one token id"),
    (StepRow(1, 0, np.array([[1, 2]], np.int32), 1), {}, "INVALID_ARG field=tokens value='int32[1, 2]'"),
    (StepRow(1, 0, np.array([1, 2]), 1), {}, "INVALID_ARG field=tokens value='int64[2]'"),
    (step_row(1, [1] * 9), {}, "INVALID_ARG field=tokens value='9 tokens' allowed=up to 8 per call"),
    (step_row(1, [1] * 7), {"num_steps": 3}, "INVALID_ARG field=tokens value='7 tokens' allowed=up to 6 per call"),
    (step_row(1, [1, 50]), {}, "INVALID_ARG field=tokens value=50 allowed=0 to 49"),
    (step_row(1, [1, -7]), {}, "INVALID_ARG field=tokens value=-7 allowed=0 to 49"),
    (step_row(1, [1], num_committed=0), {}, "INVALID_ARG field=num_committed value=0 allowed=1 to 1"),
    (step_row(1, [1], num_committed=2), {}, "INVALID_ARG field=num_committed value=2"),
    (step_row(1, [1], prefix_len=-1), {}, "INVALID_ARG field=prefix_len value=-1"),
    (step_row(1, [1], prefix_len=USABLE), {}, "INVALID_ARG field=prefix_len value='25 committed tokens' allowed=up to 24"),
    (step_row(1, [1, 2], parents=[-1]), {}, "INVALID_ARG field=parents value='1 parents' allowed=2"),
    (step_row(1, [1, 2], parents=[0, 0]), {}, "INVALID_ARG field=parents value='0 of token 0' allowed=-1 to -1"),
    (step_row(1, [1, 2, 3], parents=[-1, 0, 0]), {}, "INVALID_ARG field=parents value='0 of token 2' allowed=1 to 1"),
    (step_row(1, [1, 2, 3], num_committed=2, parents=[-1, 0, 2]), {}, "INVALID_ARG field=parents value='2 of token 2' allowed=1 to 1"),
    (step_row(1, [1, 2, 3], num_committed=2, parents=[-1, 0, 0]), {}, "INVALID_ARG field=parents value='0 of token 2' allowed=1 to 1"),
    (step_row(1, [1]), {"num_steps": -1}, "INVALID_ARG field=num_steps value=-1 allowed=0 to 8"),
    (step_row(1, [1]), {"num_steps": 9}, "INVALID_ARG field=num_steps value=9"),
    (step_row(1, [1, 2, 3], num_committed=1, parents=[-1, 0, 0]), {"num_steps": 2}, "INVALID_ARG field=parents value='0 of token 2'"),
    (replace(step_row(1, [1]), chance=1.5), {}, "INVALID_ARG field=chance value=1.5 allowed=0 to 1"),
    (replace(step_row(1, [1]), chance=float("nan")), {}, "INVALID_ARG field=chance value=nan"),
    (step_row(1, [1]), {"stop": GrowthStop(float("nan"), 0, 0)}, "INVALID_ARG field=stop value=(nan, 0, 0)"),
    (step_row(1, [1]), {"stop": GrowthStop(1, 0, 1.1)}, "INVALID_ARG field=stop value=(1, 0, 1.1)"),
    (step_row(1, [1]), {"num_candidates": 51}, "INVALID_ARG field=num_candidates value=51 allowed=0 to 50"),
    (sampling(temperature=float("nan")), {}, "INVALID_ARG field=temperature value=nan"),
    (sampling(temperature=-0.1), {}, "INVALID_ARG field=temperature value=-0.1"),
    (sampling(temperature=float("inf")), {}, "INVALID_ARG field=temperature value=inf"),
    (sampling(top_k=-1), {}, "INVALID_ARG field=top_k value=-1"),
    (sampling(top_p=0.0), {}, "INVALID_ARG field=top_p value=0.0"),
    (sampling(top_p=1.5), {}, "INVALID_ARG field=top_p value=1.5"),
    (sampling(top_p=float("nan")), {}, "INVALID_ARG field=top_p value=nan"),
    (sampling(seed=2**64), {}, "INVALID_ARG field=seed"),
    (sampling(end_ids=(50,)), {}, "INVALID_ARG field=end_ids value=50 allowed=0 to 49"),
    (sampling(end_ids=(3, -1)), {}, "INVALID_ARG field=end_ids value=-1"),
    (sampling(bad_words=(b"a",)), {}, "UNSUPPORTED field=bad_words value=1"),
]


@pytest.mark.parametrize(("row", "options", "message"), BAD_ROWS)
def test_a_malformed_row_is_an_error_that_names_the_field(row: StepRow, options: dict[str, Any], message: str) -> None:
    engine, session = fake_engine()
    (answer,) = engine.step(StepCall([row], **options)).rows
    assert answer.status is RowStatus.ERROR
    assert answer.error.startswith(message), answer.error
    assert engine.status().slots_free == 4
    assert not session.calls


def test_an_empty_bad_word_is_refused() -> None:
    engine, _ = fake_engine(token_bytes=tuple(bytes([token]) for token in range(50)))
    (answer,) = engine.step(StepCall([sampling(bad_words=(b"x", b""))])).rows
    assert answer.error.startswith("INVALID_ARG field=bad_words")
