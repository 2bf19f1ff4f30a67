"""A node of the speculation cluster in this process: Triton's gRPC call of one drafter model, answered by a scripted drafter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from drafthouse.engine.contract import StepResult
from drafthouse.triton.codec.engine import pack_step_result, unpack_step
from drafthouse.triton.codec.envelope import Envelope
from drafthouse.triton.codec.rows import unpack_release
from drafthouse.triton.schema import ENGINE, LEASE_SECRET, MESSAGE
from fakes.drafter_scripted import ScriptedDrafter, counts


@dataclass
class FakeNode(service_pb2_grpc.GRPCInferenceServiceServicer):
    """What it does wrong can be switched on and off while it serves."""

    drafter: ScriptedDrafter = field(default_factory=lambda: ScriptedDrafter("code", counts()))
    secret: bytes = b"0123456789abcdef"
    hangs: bool = False  # takes calls and does not answer until `resume`
    spoils: Callable[[np.ndarray], np.ndarray] | None = None  # what it makes of the message it should send
    models: list[str] = field(default_factory=list)
    num_calls: int = 0
    port: int = 0
    _go_on: asyncio.Event = field(default_factory=asyncio.Event)
    _server: grpc.aio.Server | None = None

    @property
    def entry(self) -> str:
        """As the configuration names it."""
        return f"127.0.0.1:{self.port}"

    def resume(self) -> None:
        """Answer what waits, and everything from now on."""
        self.hangs = False
        self._go_on.set()

    async def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext) -> pb.ModelInferResponse:
        """One step call."""
        self.num_calls += 1
        self.models.append(request.model_name)
        if self.hangs:
            self._go_on.clear()
            await self._go_on.wait()
        assert [tensor.name for tensor in request.inputs] == [MESSAGE.name]
        sections = Envelope(ENGINE.call).unseal(np.frombuffer(request.raw_input_contents[0], np.int64))
        if sections[LEASE_SECRET.name].tobytes() != self.secret:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARG field=lease_secret")
        answer: StepResult = await self.drafter.step(unpack_step(sections), unpack_release(sections))
        message = Envelope(ENGINE.answer).seal(pack_step_result(answer))
        if self.spoils is not None:
            message = self.spoils(message)
        response = pb.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name=MESSAGE.name, datatype="INT64", shape=message.shape)
        response.raw_output_contents.append(message.tobytes())
        return response

    async def start(self, credentials: grpc.ServerCredentials | None = None) -> None:
        """Serve on a free port of the loopback, later on the same one again."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        place = f"127.0.0.1:{self.port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(place)
        else:
            self.port = self._server.add_secure_port(place, credentials)
        await self._server.start()

    async def stop(self) -> None:
        """Vanish, with every call that is under way."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


@asynccontextmanager
async def serving(*nodes: FakeNode) -> AsyncIterator[None]:
    """Starts these nodes and stops them afterwards."""
    for node in nodes:
        await node.start()
    try:
        yield
    finally:
        for node in nodes:
            await node.stop()
