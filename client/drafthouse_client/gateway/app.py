"""The gateway as an ASGI application: its routes, and what stands around them."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from drafthouse.core.errors import DrafthouseError, invalid
from drafthouse_client.aio import AsyncClient
from drafthouse_client.errors import ServerSideError
from drafthouse_client.gateway import answers, errors
from drafthouse_client.gateway.chat_template import ChatTemplate, read_template
from drafthouse_client.gateway.errors import JSON_TYPE, ApiError, to_json
from drafthouse_client.gateway.generation import Generations
from drafthouse_client.gateway.metrics import CONTENT_TYPE, GatewayMetrics
from drafthouse_client.gateway.middleware import BodyLimit, Counting, Guard
from drafthouse_client.gateway.requests import ChatBody, CompletionBody, GenerationBody
from drafthouse_client.gateway.settings import GatewaySettings
from drafthouse_client.gateway.shapes import ChatDialect, CompletionDialect, Words
from drafthouse_client.gateway.translate import Plan, Translator
from drafthouse_client.gateway.vocabulary import Vocabulary

_STATUSES = {
    400: "The request is refused: `param` names what is wrong with it",
    401: "The bearer token is missing or wrong",
    404: "No such model",
    413: "The body is too large",
    500: "The server failed",
    503: "The server is not there, or its queue is full",
    504: "The deadline has passed",
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.ErrorAnswer, "description": text} for status, text in _STATUSES.items()
}


class Gateway:
    """The state of one running gateway. Raises ClientError when the tokenizer or its template cannot be read."""

    def __init__(self, settings: GatewaySettings) -> None:
        folder = settings.tokenizer_dir
        self.settings = settings
        self.metrics = GatewayMetrics()
        self.vocabulary = None if folder is None else Vocabulary(folder)
        self.translator = Translator(settings, self.vocabulary, ChatTemplate() if folder is None else read_template(folder))
        self.created_s = int(time.time())
        self._client: AsyncClient | None = None

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Connected to Triton; the connection belongs to the event loop that it was made in."""
        async with AsyncClient(self.settings.grpc_url, model=self.settings.triton_model, retry=None) as self._client:
            yield

    @property
    def client(self) -> AsyncClient:
        """The connection to Triton, while `running`."""
        assert self._client is not None, "an ASGI server runs the lifespan before it serves"
        return self._client

    @property
    def generations(self) -> Generations:
        """Whoever answers generation requests."""
        return Generations(self.client, self.metrics, self.settings.stall_s)

    def check_model(self, body: GenerationBody) -> None:
        """Raises ApiError (404) for a model that is not served."""
        self.model(body.model)

    def model(self, name: str) -> dict[str, object]:
        """OpenAI's description of the one model. Raises ApiError (404) for another one."""
        served = self.settings.served_name
        if name != served:
            message = str(invalid("model", name, served))
            raise ApiError(404, "invalid_request_error", message, "model", "model_not_found")
        return {"id": served, "object": "model", "created": self.created_s, "owned_by": "drafthouse"}

    async def words(self, plan: Plan) -> Words:
        """What the answer's numbers stand for; the server is only asked where the request wants to know."""
        try:
            return Words(self.vocabulary, await self.client.drafters() if plan.provenance else ())
        except ServerSideError as error:
            raise errors.from_server(error, plan.server_names) from error


def create_app(settings: GatewaySettings) -> FastAPI:
    """The application. Raises ClientError when the tokenizer or its chat template cannot be read."""
    gateway = Gateway(settings)
    app = FastAPI(
        title="Drafthouse",
        summary="OpenAI's completions and chat completions, drafted by many and verified by one.",
        lifespan=gateway.running,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.gateway = gateway
    _add_generation_routes(app, gateway)
    _add_model_routes(app, gateway)
    _add_operator_routes(app, gateway)
    _add_error_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Guard, api_key=settings.api_key)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    app.add_middleware(Counting, metrics=gateway.metrics)
    return app


def _add_generation_routes(app: FastAPI, gateway: Gateway) -> None:
    def described(answer: type, chunk: type) -> dict[int | str, dict[str, Any]]:
        # What holds for every event: its data is a chunk, or [DONE], or after an error that error.
        event = {"type": "object", "properties": {"data": {"type": "string", "description": f"{chunk.__name__} as JSON; [DONE] ends"}}}
        stream = {"text/event-stream": {"schema": event}}
        return {200: {"model": answer, "content": stream, "description": "The answer, or with `stream` its events"}, **_REFUSALS}

    @app.post("/v1/completions", responses=described(answers.CompletionAnswer, answers.CompletionAnswer))
    async def completions(request: Request, body: CompletionBody) -> Response:
        gateway.check_model(body)
        plan = await gateway.translator.completion(body)
        dialect = CompletionDialect(plan, gateway.settings.served_name, await gateway.words(plan))
        return await gateway.generations.answer(request, plan, dialect)

    @app.post("/v1/chat/completions", responses=described(answers.ChatAnswer, answers.ChatChunk))
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        gateway.check_model(body)
        plan = await gateway.translator.chat(body)
        dialect = ChatDialect(plan, gateway.settings.served_name, await gateway.words(plan))
        return await gateway.generations.answer(request, plan, dialect)


def _add_model_routes(app: FastAPI, gateway: Gateway) -> None:
    refusals: dict[int | str, dict[str, Any]] = {status: _REFUSALS[status] for status in (401, 404)}

    @app.get("/v1/models", responses={200: {"model": answers.ModelList}, 401: _REFUSALS[401]})
    async def models() -> Response:
        return _json({"object": "list", "data": [gateway.model(gateway.settings.served_name)]})

    @app.get("/v1/models/{model:path}", responses={200: {"model": answers.Model}, **refusals})
    async def model(model: str) -> Response:
        return _json(gateway.model(model))


def _add_operator_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/health", responses={200: {"model": answers.Health}})
    async def health() -> Response:
        """The gateway runs."""
        return _json({"status": "ok"})

    @app.get("/ready", responses={200: {"model": answers.Health}, 503: {"model": answers.Health}})
    async def ready() -> Response:
        """The model behind it answers, too."""
        is_ready = await gateway.client.ready()
        return _json({"status": "ok" if is_ready else "unavailable"}, 200 if is_ready else 503)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        """The gateway's own figures, for Prometheus."""
        return Response(gateway.metrics.exposition(), media_type=CONTENT_TYPE)


def _add_error_handlers(app: FastAPI) -> None:
    # Starlette types handlers by the base class of all exceptions.
    async def handle(translate: Any, request: Request, error: Exception) -> Response:  # noqa: ANN401
        refusal: ApiError = translate(error)
        return refusal.response()

    app.add_exception_handler(DrafthouseError, partial(handle, errors.from_drafthouse))
    app.add_exception_handler(RequestValidationError, partial(handle, errors.from_validation))
    app.add_exception_handler(HTTPException, partial(handle, errors.from_http))
    app.add_exception_handler(Exception, partial(handle, errors.from_bug))


def _json(value: object, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type=JSON_TYPE)
