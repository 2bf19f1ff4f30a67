"""The front door's inputs as they lie on the wire: one table of names and kinds, and how an array becomes a value.

Names are those of NVIDIA's `tensorrt_llm_bls` model, so existing clients work. Every input is optional on the wire,
which leaves the wording of every refusal to us.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.errors import invalid, unsupported


class Kind(StrEnum):
    """What one element of an input is."""

    TEXT = "UTF-8 text"
    INT = "an integer"
    FLOAT = "a number"
    BOOL = "true or false"


@dataclass(frozen=True, slots=True)
class Spec:
    """How one input is read. With ``neutral`` it is a feature we do not have: only these values are accepted."""

    kind: Kind
    many: bool = False
    neutral: tuple[object, ...] = ()


Text = Annotated[str | None, Spec(Kind.TEXT)]
Texts = Annotated[tuple[str, ...] | None, Spec(Kind.TEXT, many=True)]
Int = Annotated[int | None, Spec(Kind.INT)]
Ints = Annotated[tuple[int, ...] | None, Spec(Kind.INT, many=True)]
Float = Annotated[float | None, Spec(Kind.FLOAT)]
Bool = Annotated[bool | None, Spec(Kind.BOOL)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawInputs:
    """The inputs of one request, converted but not yet judged; None = not sent."""

    text_input: Text = None
    input_ids: Ints = None
    max_tokens: Int = None
    min_tokens: Int = None
    stop_words: Texts = None
    bad_words: Texts = None
    end_id: Int = None
    pad_id: Int = None
    temperature: Float = None
    top_k: Int = None
    top_p: Float = None
    seed: Int = None
    stream: Bool = None
    exclude_input_in_output: Bool = None
    return_num_input_tokens: Bool = None
    return_num_output_tokens: Bool = None
    return_log_probs: Bool = None
    return_finish_reason: Bool = None
    return_perf_metrics: Bool = None
    num_draft_tokens: Int = None
    drafters: Texts = None
    deadline_ms: Int = None
    request_priority: Int = None
    repetition_penalty: Annotated[float | None, Spec(Kind.FLOAT, neutral=(1.0,))] = None
    frequency_penalty: Annotated[float | None, Spec(Kind.FLOAT, neutral=(0.0,))] = None
    presence_penalty: Annotated[float | None, Spec(Kind.FLOAT, neutral=(0.0,))] = None
    length_penalty: Annotated[float | None, Spec(Kind.FLOAT, neutral=(0.0, 1.0))] = None
    beam_width: Annotated[int | None, Spec(Kind.INT, neutral=(1,))] = None
    num_return_sequences: Annotated[int | None, Spec(Kind.INT, neutral=(1,))] = None
    guided_decoding_guide_type: Annotated[str | None, Spec(Kind.TEXT, neutral=("",))] = None
    guided_decoding_guide: Annotated[str | None, Spec(Kind.TEXT, neutral=("",))] = None


_SPECS: dict[str, Spec] = {name: hint.__metadata__[0] for name, hint in get_type_hints(RawInputs, include_extras=True).items()}
INPUT_NAMES = tuple(_SPECS)

# Names that clients of other servers use, where the nearest spelling would mislead.
_MEANT = {
    "prompt": "text_input",
    "priority": "request_priority",
    "timeout": "deadline_ms",
    "stop": "stop_words",
    "n": "num_return_sequences",
    "logprobs": "return_log_probs",
    "echo": "exclude_input_in_output",
    "random_seed": "seed",
}
_DTYPE_KINDS = {Kind.TEXT: "OS", Kind.INT: "iu", Kind.FLOAT: "fiu", Kind.BOOL: "b"}


def read_inputs(tensors: Mapping[str, NDArray[Any]], parameters: Mapping[str, object]) -> RawInputs:
    """Convert the tensors of one request (shapes [], [n] or [1, n]; text as bytes).

    Raises ClientError for a request parameter that is no input (a misspelt key arrives as one), for more or fewer
    than one value where one is due, for invalid UTF-8, and for a feature that is declared but not supported.
    """
    for name in parameters:
        if not name.startswith("triton_"):
            raise _unknown(name, parameters[name])
    values: dict[str, Any] = {}
    for name, array in tensors.items():
        if name not in _SPECS:
            raise _unknown(name, None)
        values[name] = _read(name, np.asarray(array))
    raw = RawInputs(**values)
    _refuse_unsupported(values)
    return raw


def _unknown(name: str, value: object) -> Exception:
    near = [_MEANT[name]] if name in _MEANT else difflib.get_close_matches(name, INPUT_NAMES, n=1)
    allowed = f"did you mean {near[0]}?" if near else f"one of {', '.join(INPUT_NAMES)}"
    return invalid(name if name.isprintable() and len(name) <= 80 else "parameters", value, f"a known input; {allowed}")


def _read(name: str, array: NDArray[Any]) -> object:
    spec = _SPECS[name]
    if array.dtype.kind not in _DTYPE_KINDS[spec.kind]:
        raise invalid(name, array.dtype, spec.kind.value)
    items = array.reshape(-1).tolist()
    if spec.kind is Kind.TEXT:
        items = [_decode(name, item) for item in items]
    if spec.many:
        return tuple(items) if items else None
    if len(items) != 1:
        raise invalid(name, f"{len(items)} values", "exactly one value")
    value: object = items[0]
    return value


def _decode(name: str, item: object) -> str:
    if not isinstance(item, bytes):
        raise invalid(name, item, Kind.TEXT.value)
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(name, item[error.start : error.start + 8], "valid UTF-8") from None


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        neutral = _SPECS[name].neutral
        if neutral and value not in neutral:
            raise unsupported(name, value, " or ".join(repr(item) for item in neutral) + " (no effect)")
