"""Inner models reached by business logic scripting (BLS) calls inside this server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import triton_python_backend_utils as pb_utils

from drafthouse.core.errors import ClientError
from drafthouse.engine.contract import EngineError, StepCall, StepResult
from drafthouse.fusion.contract import DraftCall, DraftResult
from drafthouse.routing.contract import RouteResult, RouteRow
from drafthouse.triton.codec.engine import pack_step, unpack_step_result
from drafthouse.triton.codec.envelope import Envelope, Tensors
from drafthouse.triton.codec.fusion import pack_draft, unpack_draft_result
from drafthouse.triton.codec.routing import pack_route, unpack_route_result
from drafthouse.triton.keeper import ModelKeeper
from drafthouse.triton.lease import Lease
from drafthouse.triton.schema import LEASE_SECRET, MESSAGE, messages_of


class BlsModel:
    """One inner model: sends sections with the lease secret, returns sections, raises EngineError for anything else."""

    def __init__(self, model_name: str, lease: Lease, timeout_s: float, keeper: ModelKeeper | None = None) -> None:
        """``keeper``: told how calls went, so that it can reload the model; one caller of a model has one."""
        self.model_name = model_name
        self._lease = lease
        self._timeout_s = timeout_s
        self._keeper = keeper
        # A call that was given up keeps a thread until the model answers, so there is never more than one.
        self._stuck: asyncio.Future[pb_utils.InferenceResponse] | None = None
        messages = messages_of(model_name)
        self._calls, self._answers = Envelope(messages.call), Envelope(messages.answer)

    async def call(self, sections: Tensors) -> Tensors:
        """One call. Raises EngineError when the model is gone, slow or refuses."""
        sections[LEASE_SECRET.name] = self._lease.section
        request = pb_utils.InferenceRequest(
            model_name=self.model_name,
            requested_output_names=[MESSAGE.name],
            inputs=[pb_utils.Tensor(MESSAGE.name, self._calls.seal(sections))],
        )
        response = await self._answer(request)
        if response.has_error():
            raise self._failure(response.error().message())
        if self._keeper is not None:
            self._keeper.saw_answer()
        try:
            return self._answers.unseal(response.output_tensors()[0].as_numpy())
        except ClientError as error:
            raise self._failure(str(error)) from error

    async def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        # Triton's own timeout only bounds the time in its queue, which these models do not have.
        if self._stuck is not None and not self._stuck.done():
            raise self._failure("still busy with a call that was given up")
        future = asyncio.ensure_future(request.async_exec())
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(future)
        except TimeoutError:
            raise self._failure(f"no answer within {self._timeout_s:g} s") from None
        except pb_utils.TritonModelException as error:
            raise self._failure(str(error)) from error
        finally:
            self._stuck = None if future.done() else future
            if self._stuck is not None:
                self._stuck.add_done_callback(_retrieve)

    def _failure(self, message: str) -> EngineError:
        if self._keeper is not None:
            self._keeper.saw_error(message)
        return EngineError(f"{self.model_name}: {message}")


def _retrieve(future: asyncio.Future[pb_utils.InferenceResponse]) -> None:
    """Look at an answer that came too late, so that asyncio does not complain about one nobody looked at."""
    if not future.cancelled():
        future.exception()


class BlsEngineClient:
    """A target or drafter engine of this server (`engine.contract.EngineClient`, `fusion.contract.DrafterClient`)."""

    def __init__(self, name: str, model: BlsModel) -> None:
        self._name = name
        self._model = model

    @property
    def name(self) -> str:
        """The drafter's domain name, or ``target``."""
        return self._name

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        """Release, then step. Raises EngineError."""
        return unpack_step_result(await self._model.call(pack_step(call, release_uids)))


class BlsFusion:
    """The `fusion` model of this server. Raises EngineError only when fusion itself is gone."""

    def __init__(self, model: BlsModel) -> None:
        self._model = model

    async def draft(self, call: DraftCall) -> DraftResult:
        """One draft round."""
        return unpack_draft_result(await self._model.call(pack_draft(call)))


class BlsRouter:
    """The `router` model of this server. Raises EngineError when it is gone."""

    def __init__(self, model: BlsModel) -> None:
        self._model = model

    async def route(self, rows: Sequence[RouteRow]) -> Sequence[RouteResult]:
        """One result per row."""
        return unpack_route_result(await self._model.call(pack_route(rows)))
