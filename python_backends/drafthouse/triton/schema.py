"""The one definition of every tensor that crosses a process border: names, types, shapes.

`config.pbtxt` files are checked against this table by a test; codecs and adapters take their names from it. The inner
models (engines, fusion, router) speak in messages: one tensor each way, which carries the sections listed here
(`codec/envelope.py` says why). Sections with a row per request name their columns by the enums below.
"""

from dataclasses import dataclass
from enum import IntEnum

from drafthouse.routing.contract import NUM_STATE


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a model: Triton data type (as in config.pbtxt, without TYPE_) and dims, -1 = any length."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """All tensors of one model, and whether Triton adds a batch dimension of 1 in front."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0
    decoupled: bool = False

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in the table's order."""
        return [spec.name for spec in self.outputs]


# The one tensor of an inner model's call and of its answer.
MESSAGE = TensorSpec("message", "INT64", (-1,))


@dataclass(frozen=True, slots=True)
class MessageSchema:
    """The sections of an inner model's call and of its answer, in the order in which they lie in the message."""

    call: tuple[TensorSpec, ...]
    answer: tuple[TensorSpec, ...]

    @property
    def model(self) -> ModelSchema:
        """What Triton sees of it."""
        return ModelSchema((MESSAGE,), (MESSAGE,))


LEASE_SECRET = TensorSpec("lease_secret", "UINT8", (-1,))
# JSON, UTF-8: one list of words per row. Sent only when a row has any.
BAD_WORDS = TensorSpec("bad_words", "UINT8", (-1,), optional=True)
# (row, token id): the second and further end tokens of rows that have several. Sent only when a row has.
MORE_END_IDS = TensorSpec("more_end_ids", "INT32", (-1, 2), optional=True)
RELEASE_UIDS = TensorSpec("release_uids", "UINT64", (-1,), optional=True)


class RowColumn(IntEnum):
    """Columns of an engine's or fusion's `rows` INT64 [B, 8]."""

    REQUEST_UID = 0  # uint64 bits
    PREFIX_LEN = 1
    NUM_TOKENS = 2
    COUNT = 3  # engine: num_committed; fusion: num_draft_tokens
    SEED = 4  # uint64 bits
    TOP_K = 5
    END_ID = 6  # the first end token, -1 = none
    MIN_END_POSITION = 7


class ParamColumn(IntEnum):
    """Columns of `row_params` FP32 [B, 2]."""

    TEMPERATURE = 0
    TOP_P = 1


class StepOption(IntEnum):
    """Entries of an engine's `options` INT32 [4]."""

    NUM_STEPS = 0
    NUM_CANDIDATES = 1
    RETURN_LOGPROBS = 2
    RETURN_PROMPT_LOGPROB = 3


class InfoColumn(IntEnum):
    """Entries of `engine_info` INT64 [5]."""

    ENGINE_EPOCH = 0
    SESSION_NS = 1
    SLOTS_FREE = 2
    SLOTS_TOTAL = 3
    NUM_ROWS = 4


class ResultColumn(IntEnum):
    """Columns of an engine's `row_results` INT64 [B, 4]."""

    STATUS = 0
    CACHED_LEN = 1
    NUM_OUTPUTS = 2
    NUM_SCORED = 3


class PlanOption(IntEnum):
    """Entries of fusion's `plan` INT32 [4]."""

    FUSE_EVERY = 0
    NUM_SIBLINGS = 1
    KEEP_DIVERGENT = 2
    MAX_NODES = 3


class RouteRowColumn(IntEnum):
    """Columns of the router's `row_features` FP32 [B, 4]."""

    NUM_ROUNDS = 0
    ACCEPTED_LEN = 1
    DRAFTED_LEN = 2
    MAX_DRAFTERS = 3


class DrafterColumn(IntEnum):
    """Columns of the router's `drafter_features` FP32 [B, D, 2 + S]; the routing state fills the rest."""

    PROMPT_LOGPROB = 0
    ALLOWED = 1  # 1 or 0
    STATE = 2


class RouteColumn(IntEnum):
    """Columns of the router's `routes` FP32 [B, D, 2 + S]; the new routing state fills the rest."""

    WEIGHT = 0
    SCORE = 1
    STATE = 2


ENGINE = MessageSchema(
    call=(
        LEASE_SECRET,
        TensorSpec("rows", "INT64", (-1, 8), optional=True),
        TensorSpec("row_params", "FP32", (-1, 2), optional=True),
        TensorSpec("nodes", "INT32", (-1, 2), optional=True),  # token id, parent within the row
        TensorSpec("options", "INT32", (4,), optional=True),
        # Of rows that may stop growing early.
        TensorSpec("row_chances", "FP32", (-1,), optional=True),  # [B]
        TensorSpec("growth_stop", "FP32", (3,), optional=True),  # slope, intercept, least chance
        BAD_WORDS,
        MORE_END_IDS,
        RELEASE_UIDS,
    ),
    answer=(
        TensorSpec("engine_info", "INT64", (5,)),
        TensorSpec("row_results", "INT64", (-1, 4)),
        TensorSpec("row_logprobs", "FP32", (-1,)),  # summed prompt log-probability, nats
        TensorSpec("node_tokens", "INT32", (-1, -1)),  # [num_outputs, 1 + num_candidates]: sampled, candidates
        TensorSpec("node_logprobs", "FP32", (-1, -1)),  # log-probability of the sample, candidates' probabilities
        TensorSpec("row_errors", "UINT8", (-1,)),  # JSON: {row: message}
    ),
)

FUSION = MessageSchema(
    call=(
        LEASE_SECRET,
        TensorSpec("rows", "INT64", (-1, 8), optional=True),
        TensorSpec("row_params", "FP32", (-1, 2), optional=True),
        TensorSpec("tokens", "INT32", (-1,), optional=True),
        TensorSpec("weights", "FP32", (-1, -1), optional=True),  # [B, D]
        TensorSpec("scores", "FP32", (-1, -1), optional=True),  # [B, D], routing scores
        TensorSpec("plan", "INT32", (4,), optional=True),  # see `PlanOption`
        TensorSpec("min_chance", "FP32", (1,), optional=True),
        TensorSpec("calibration", "FP32", (2, -1, 3), optional=True),  # [2, D, (a, b, c)]
        TensorSpec("base_shape", "INT32", (-1, 2), optional=True),  # [B, (nodes, leaf)], when any row goes on from a tree
        TensorSpec("base_nodes", "INT32", (-1, 4), optional=True),  # as tree_nodes
        TensorSpec("base_chances", "FP32", (-1, 2), optional=True),  # as tree_chances
        BAD_WORDS,
        MORE_END_IDS,
        RELEASE_UIDS,
    ),
    answer=(
        TensorSpec("draft_info", "INT64", (1,)),  # draft_session_ns
        TensorSpec("tree_sizes", "INT32", (-1,)),  # [B]
        TensorSpec("tree_nodes", "INT32", (-1, 4)),  # token, parent, source drafter, rank
        TensorSpec("tree_chances", "FP32", (-1, 2)),  # chance of acceptance, the drafter's own probability
        TensorSpec("trunks", "INT32", (-1, -1)),  # [B, K], the trunks' new nodes, -1 behind the end
        TensorSpec("drafter_state", "INT32", (-1, -1, 3)),  # [B, D, (status, cached_len, num_scored)]
        TensorSpec("prompt_logprob", "FP32", (-1, -1)),  # [B, D]
        TensorSpec("proposals", "INT32", (-1, -1, -1)),  # [B, D, K], -1 = none
        TensorSpec("proposal_probs", "FP32", (-1, -1, -1)),
    ),
)

ROUTER = MessageSchema(
    call=(
        LEASE_SECRET,
        TensorSpec("request_uids", "UINT64", (-1,)),
        TensorSpec("row_features", "FP32", (-1, 4)),
        TensorSpec("drafter_features", "FP32", (-1, -1, 2 + NUM_STATE)),  # [B, D, (mean prompt log-probability, allowed, state)]
        TensorSpec("proposals", "INT32", (-1, -1, -1)),  # [B, D, K], -1 = none
        TensorSpec("proposal_probs", "FP32", (-1, -1, -1)),
        TensorSpec("target_tokens", "INT32", (-1, -1)),  # [B, K], -1 = not reached
    ),
    answer=(TensorSpec("routes", "FP32", (-1, -1, 2 + NUM_STATE)),),  # [B, D, (weight, score, state)]
)


def _scalar(name: str, dtype: str) -> TensorSpec:
    return TensorSpec(name, dtype, (1,), optional=True)


def _list(name: str, dtype: str) -> TensorSpec:
    return TensorSpec(name, dtype, (-1,), optional=True)


# Names and types of NVIDIA's tensorrt_llm_bls; every input is optional so that we write the error message.
COSINE = ModelSchema(
    inputs=(
        _scalar("text_input", "STRING"),
        _list("input_ids", "INT32"),
        _scalar("max_tokens", "INT32"),
        _scalar("min_tokens", "INT32"),
        _list("stop_words", "STRING"),
        _list("bad_words", "STRING"),
        _scalar("end_id", "INT32"),
        _scalar("pad_id", "INT32"),
        _scalar("temperature", "FP32"),
        _scalar("top_k", "INT32"),
        _scalar("top_p", "FP32"),
        _scalar("seed", "UINT64"),
        _scalar("stream", "BOOL"),
        _scalar("exclude_input_in_output", "BOOL"),
        _scalar("return_num_input_tokens", "BOOL"),
        _scalar("return_num_output_tokens", "BOOL"),
        _scalar("return_log_probs", "BOOL"),
        _scalar("return_finish_reason", "BOOL"),
        _scalar("return_perf_metrics", "BOOL"),
        _scalar("num_draft_tokens", "INT32"),
        _list("drafters", "STRING"),
        _scalar("deadline_ms", "INT32"),
        _scalar("request_priority", "INT32"),
        _scalar("repetition_penalty", "FP32"),
        _scalar("frequency_penalty", "FP32"),
        _scalar("presence_penalty", "FP32"),
        _scalar("length_penalty", "FP32"),
        _scalar("beam_width", "INT32"),
        _scalar("num_return_sequences", "INT32"),
        _scalar("guided_decoding_guide_type", "STRING"),
        _scalar("guided_decoding_guide", "STRING"),
        _scalar("stats_request", "BOOL"),
    ),
    outputs=(
        TensorSpec("text_output", "STRING", (-1,)),
        TensorSpec("output_ids", "INT32", (-1,)),
        TensorSpec("token_sources", "INT32", (-1,)),
        TensorSpec("num_input_tokens", "INT32", (1,)),
        TensorSpec("num_output_tokens", "INT32", (1,)),
        TensorSpec("finish_reason", "STRING", (1,)),
        TensorSpec("output_log_probs", "FP32", (-1,)),
        TensorSpec("acceptance_rate", "FP32", (1,)),
        TensorSpec("total_accepted_draft_tokens", "INT32", (1,)),
        TensorSpec("total_draft_tokens", "INT32", (1,)),
        TensorSpec("arrival_time_ns", "INT64", (1,)),
        TensorSpec("first_scheduled_time_ns", "INT64", (1,)),
        TensorSpec("first_token_time_ns", "INT64", (1,)),
        TensorSpec("last_token_time_ns", "INT64", (1,)),
        TensorSpec("stats", "STRING", (1,)),
    ),
    max_batch_size=1,
    decoupled=True,
)


def messages_of(model_name: str) -> MessageSchema:
    """What an inner model is asked and answers, by the model's name."""
    if model_name == "target" or model_name.startswith("drafter_"):
        return ENGINE
    return {"fusion": FUSION, "router": ROUTER}[model_name]


def schema_of(model_name: str) -> ModelSchema:
    """The tensors of a model of the repository as Triton sees them, by the model's name."""
    return COSINE if model_name == "cosine" else messages_of(model_name).model
