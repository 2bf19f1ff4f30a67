"""The engine: ``step`` and ``release`` over any ``Session``.

The life of a step call: check each row → give it a slot and see what its cache already holds → split the rows into network calls → run
them, choosing a token at every output node → answer in the caller's order.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path

from drafthouse.core.errors import invalid
from drafthouse.engine.batch import DraftShape, Task
from drafthouse.engine.contract import EngineLimits, RowResult, RowStatus, StepCall, StepResult, StepRow
from drafthouse.engine.costs import CallCosts, measure_calls, shapes_to_measure
from drafthouse.engine.manifest import EngineManifest, read_manifest
from drafthouse.engine.onnx_session import OnnxSession
from drafthouse.engine.options import EngineOptions
from drafthouse.engine.rows import RowChecker, num_extensions
from drafthouse.engine.runner import Runner, empty_result
from drafthouse.engine.session import Session
from drafthouse.engine.slots import SlotTable
from drafthouse.engine.tensorrt.loading import open_session
from drafthouse.engine.tensorrt.plan import PLAN_NAME
from drafthouse.engine.window import CacheWindow
from drafthouse.sampling.vocabulary import read_token_bytes

TOKENIZER_NAME = "tokenizer.json"
_EPOCH_BITS = 62  # positive as int64


class ModelEngine:
    """An ``Engine`` over one session. Calls come one at a time: the caller serialises them."""

    def __init__(self, session: Session, manifest: EngineManifest, options: EngineOptions, token_bytes: Sequence[bytes] = ()) -> None:
        """``token_bytes`` by token id; without them a row with ``bad_words`` is refused."""
        self.token_bytes = token_bytes
        self._session = session
        self._limits = EngineLimits(manifest.max_step_tokens, manifest.usable_context, manifest.vocab_size, options.slots)
        self._checker = RowChecker(self._limits, bool(token_bytes))
        self._slots = SlotTable(options.slots, manifest.context_len)
        self._runner = Runner(session, manifest, token_bytes, self._slots)
        self._epoch = secrets.randbits(_EPOCH_BITS)
        self._window = CacheWindow(session, self._slots)
        self._window.resize(manifest.context_len // 2)  # as full as slots are in the middle of their requests
        shapes = shapes_to_measure(options.min_step_tokens, manifest.max_step_tokens, options.slots)
        cost_ms = measure_calls(self._runner.rehearse, shapes, options.calibration_ms)
        self.costs = CallCosts(options.min_step_tokens, manifest.max_step_tokens, cost_ms)

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    @property
    def pool_bytes(self) -> int:
        """Size of the key/value pool."""
        return self._session.pool_bytes

    def reserve(self) -> None:
        """Takes the memory of the largest possible call and of the whole pool now, so that none has to be found while serving."""
        slots, most = self._limits.slots, self._limits.max_step_tokens
        self._window.resize(self._slots.context_len)
        self._runner.rehearse(slots, most, slots * most)
        for slot in range(self._limits.slots):
            self._session.clear_slot(slot)

    def step(self, call: StepCall) -> StepResult:
        """Runs every row of ``call``; see the contract. A runtime failure is an ERROR of the rows that shared the network call."""
        self._runner.session_ns = 0
        try:
            return self._result(self._answers(call))
        except Exception:
            # Nobody knows how far it got: nothing that is still held counts as computed, and every caller is asked to send it again.
            self._slots.forget_all()
            raise

    def _answers(self, call: StepCall) -> list[RowResult]:
        answers: dict[int, RowResult] = {}
        tasks: list[Task] = []
        seen: set[int] = set()
        for index, row in enumerate(call.rows):
            admitted = self._admit(index, row, call, seen)
            if isinstance(admitted, Task):
                tasks.append(admitted)
            else:
                answers[index] = admitted
        if tasks:
            self._window.fit(tasks)
            for task, answer in zip(tasks, self._runner.run(tasks, call, self.costs), strict=True):
                answers[task.index] = answer
        return [answers[index] for index in range(len(call.rows))]

    def release(self, request_uids: Sequence[int]) -> None:
        """Frees the slots of these requests; unknown ones are ignored."""
        self._slots.release(request_uids)

    def status(self) -> StepResult:
        """Epoch and slot counts."""
        self._runner.session_ns = 0
        return self._result([])

    def _result(self, rows: Sequence[RowResult]) -> StepResult:
        return StepResult(rows, self._epoch, self._runner.session_ns, self._slots.num_free, self._slots.num_slots)

    def _admit(self, index: int, row: StepRow, call: StepCall, seen: set[int]) -> Task | RowResult:
        problem = self._checker.problem(row, call)
        if not problem and row.request_uid in seen:
            problem = str(invalid("request_uid", row.request_uid, "each request once per call"))
        seen.add(row.request_uid)
        if problem:
            return empty_result(RowStatus.ERROR, self._slots.cached_len(row.request_uid), problem)
        entry = self._slots.admit(row)
        if isinstance(entry, RowStatus):
            return empty_result(entry, self._slots.cached_len(row.request_uid))
        # The last committed token is always computed; all of them when they are to be scored, so that a repeated call scores the same.
        reused, path = entry.reusable(row, 0 if call.return_prompt_logprob else row.num_committed - 1)
        moved = entry.keep_path(path, row, reused)
        if moved is not None:
            self._session.copy_rows(entry.slot, *moved)
        return Task(index, row, entry, reused, DraftShape.of(row), num_extensions(call.num_steps))


def load_engine(folder: Path, options: EngineOptions) -> ModelEngine:
    """Loads the engine in ``folder``: ``engine.json``, ``model.plan`` (TensorRT) or ``model.onnx``, and ``tokenizer.json`` where bad
    words are to be obeyed.

    Raises ClientError naming the file, or the entry, that is missing or wrong, and ServerError where the machine lacks something.
    """
    manifest = read_manifest(folder)
    session = _open_session(folder, manifest, options)
    tokenizer = folder / TOKENIZER_NAME
    token_bytes = read_token_bytes(tokenizer, manifest.vocab_size) if tokenizer.is_file() else ()
    engine = ModelEngine(session, manifest, options, token_bytes)
    engine.reserve()
    return engine


def _open_session(folder: Path, manifest: EngineManifest, options: EngineOptions) -> Session:
    if (folder / PLAN_NAME).is_file():
        return open_session(folder, manifest, options)
    return OnnxSession(folder, manifest, options.slots, options.num_threads)
