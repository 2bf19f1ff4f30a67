"""One node of the speculation cluster: one connection, and whether it may take part in rounds.

A node is asked during a round only after it has answered a probe. It is left out as soon as a call fails, and probed beside the
rounds, with growing pauses, until it answers: no round waits for a node that was lost before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import tritonclient.grpc.aio as triton

from drafthouse.core.clock import now_ns
from drafthouse.engine.contract import EngineError, StepCall, StepResult
from drafthouse.engine.releases import Releases
from drafthouse.fusion.fuser import FusionOptions
from drafthouse.fusion.tardiness import Tardiness, Work
from drafthouse.triton.codec.engine import pack_step, unpack_step_result
from drafthouse.triton.codec.envelope import Envelope
from drafthouse.triton.lease import Lease
from drafthouse.triton.remote.endpoints import Address
from drafthouse.triton.remote.settings import TlsFiles
from drafthouse.triton.schema import ENGINE, LEASE_SECRET, MESSAGE

NOT_ASKED = "not asked yet"
LATE = "answers late"
SLOW_CALLS_BEFORE_LEFT_OUT = 2  # before the whole drafter would be
_ROUNDING = 1e-5  # by which a probability may exceed 1
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", triton.MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", triton.MAX_GRPC_MESSAGE_SIZE),
    # A connection of its own: one that was given up is not handed to the channel that replaces it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_http_proxy", 0),  # what a shell's http_proxy says is not meant for a cluster's own nodes
)


@dataclass(frozen=True, slots=True)
class Probing:
    """How a lost node is looked after."""

    timeout_s: float = 5.0  # for one probe; a model that hangs answers it when it goes on, so fewer are better than more
    first_pause_s: float = 0.25
    max_pause_s: float = 8.0


@dataclass(frozen=True, slots=True)
class Contact:
    """What it takes to talk to a drafter's nodes: the same for all of them."""

    model_name: str
    vocab_size: int
    lease: Lease
    timeout_s: float  # for one call of a round
    tls: TlsFiles | None = None
    probing: Probing = Probing()
    patience_s: float = FusionOptions().patience_s  # of several nodes in one call; see there


class RemoteNode:
    """Calls one node. Belongs to one event loop, on which all of its methods run."""

    def __init__(self, address: Address, contact: Contact) -> None:
        self.address = address
        self.releases = Releases()  # requests this node may still hold
        self.is_up = False
        self.is_listed = True  # the configuration, or the DNS, still names it
        self.slots_free = 0
        self.slots_total = 0
        self.trouble = NOT_ASKED  # why it is left out
        self.tardiness = Tardiness(SLOW_CALLS_BEFORE_LEFT_OUT)
        self._contact = contact
        self._calls, self._answers = Envelope(ENGINE.call), Envelope(ENGINE.answer)
        self._client: triton.InferenceServerClient | None = None
        self._beside: asyncio.Task[None] | None = None  # a probe, or releases
        self._pause_s = contact.probing.first_pause_s
        self._next_probe_ns = 0

    async def step(self, call: StepCall) -> StepResult:
        """One call, with every release that is due. Raises EngineError, and leaves this node out from then on."""
        return await self._step(call, self._contact.timeout_s)

    async def timed_step(self, call: StepCall) -> tuple[StepResult, Work]:
        """As `step`, and what it took."""
        started_ns, work = now_ns(), Work()
        result = await self.step(call)
        wall_ns = now_ns() - started_ns
        if call.num_steps:
            work.drafted(wall_ns, call.num_steps, len(call.rows))
        else:
            work.took_in(wall_ns, sum(len(row.tokens) for row in call.rows))
        return result, work

    def was(self, is_late: bool, work: Work) -> None:
        """Hear how long a call took beside the other nodes'; late too often, it is left out for a while."""
        if self.tardiness.note(is_late, work.wall_ns, now_ns()) and self.is_up:
            self._leave_out(LATE)
            self._next_probe_ns = self.tardiness.back_at_ns

    def tend(self, is_busy: bool = False) -> None:
        """Start what is due in the background, one thing at a time: a probe, or releases that no call will carry now
        (``is_busy``: one will). Returns at once."""
        if self._beside is not None and not self._beside.done():
            return
        if not self.is_up and now_ns() >= self._next_probe_ns:
            self._beside = asyncio.ensure_future(self._probe())
        elif self.is_up and len(self.releases) > 0 and not is_busy:
            self._beside = asyncio.ensure_future(self._tell())

    async def status(self) -> StepResult:
        """The node's slots; a node that is left out is probed now. Raises EngineError."""
        if not self.is_up:
            self._next_probe_ns = 0
            self.tend()
            await self.settled()
        if not self.is_up:
            raise EngineError(f"{self}: {self.trouble}")
        return await self.step(StepCall(()))

    async def settled(self) -> None:
        """Waits for what is under way in the background."""
        if self._beside is not None:
            await asyncio.wait([self._beside])

    async def close(self) -> None:
        """Ends the connection, and with it every call."""
        if self._beside is not None:
            self._beside.cancel()
            await self.settled()
        await self._hang_up()

    def __str__(self) -> str:
        return f"{self._contact.model_name} at {self.address}"

    async def _probe(self) -> None:
        # The connection that failed may be a dead one that nobody has noticed yet.
        await self._hang_up()
        with suppress(EngineError):
            await self._step(StepCall(()), self._contact.probing.timeout_s)
            self.is_up, self.trouble = True, ""
            self._pause_s = self._contact.probing.first_pause_s
            logging.getLogger(__name__).warning("%s answers and takes part", self)

    async def _tell(self) -> None:
        with suppress(EngineError):
            await self.step(StepCall(()))

    async def _step(self, call: StepCall, timeout_s: float) -> StepResult:
        carried = self.releases.owed()
        try:
            result = await self._exchange(call, tuple(carried), timeout_s)
            self._check(call, result)
        except asyncio.CancelledError as error:
            self._leave_out("given up")
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise EngineError(f"{self}: the connection was closed") from error  # gRPC says so by cancelling what waits
        except Exception as error:  # a node may answer anything, and only EngineError leaves
            self._leave_out(_reason(error))
            raise EngineError(f"{self}: {self.trouble}") from error
        self.releases.settle(carried)
        self.slots_free, self.slots_total = result.slots_free, result.slots_total
        return result

    async def _exchange(self, call: StepCall, released: Sequence[int], timeout_s: float) -> StepResult:
        sections = pack_step(call, released)
        sections[LEASE_SECRET.name] = self._contact.lease.section
        message = self._calls.seal(sections)
        tensor = triton.InferInput(MESSAGE.name, list(message.shape), MESSAGE.dtype)
        tensor.set_data_from_numpy(message)
        # gRPC's own deadline counts on while this loop stands still between two rounds, and so does the answer come in.
        answer = await self._connected().infer(self._contact.model_name, [tensor], client_timeout=timeout_s)
        return unpack_step_result(self._answers.unseal(answer.as_numpy(MESSAGE.name)))

    def _check(self, call: StepCall, result: StepResult) -> None:
        """Another build's drafter must reach neither fusion nor the target. Raises ValueError."""
        if len(result.rows) != len(call.rows):
            raise ValueError(f"{len(result.rows)} rows instead of {len(call.rows)}")
        for asked, row in zip(call.rows, result.rows, strict=True):
            if not 0 <= row.cached_len <= asked.prefix_len + asked.num_committed or row.num_scored < 0:
                raise ValueError("a cache longer than what was sent")
            if not ((row.candidate_probs >= 0) & (row.candidate_probs <= 1 + _ROUNDING)).all():
                raise ValueError("probabilities outside 0 to 1")
            for ids in (row.sampled, row.candidate_ids):
                if ids.size and not 0 <= ids.min() <= ids.max() < self._contact.vocab_size:
                    raise ValueError(f"token ids outside the vocabulary of {self._contact.vocab_size}")
            most = len(asked.tokens) - asked.num_committed + call.num_steps  # the root, drafts, and what was grown
            if len(row.sampled) > most or row.candidate_ids.shape != row.candidate_probs.shape:
                raise ValueError("output nodes that do not fit together")

    def _leave_out(self, trouble: str) -> None:
        if self.is_up or self.trouble == NOT_ASKED:  # and not at every probe after that
            logging.getLogger(__name__).warning("%s is left out: %s", self, trouble)
        self._next_probe_ns = now_ns() + int(self._pause_s * 1e9)
        self._pause_s = min(2 * self._pause_s, self._contact.probing.max_pause_s)
        self.is_up, self.trouble = False, trouble

    def _connected(self) -> triton.InferenceServerClient:
        if self._client is None:
            tls, options = self._contact.tls, list(_CHANNEL_OPTIONS)
            if tls is not None and self.address.host != self.address.ip:
                options.append(("grpc.ssl_target_name_override", self.address.host))
            files = tls or TlsFiles()
            self._client = triton.InferenceServerClient(
                self.address.target,
                ssl=tls is not None,
                root_certificates=files.root,
                private_key=files.key,
                certificate_chain=files.cert,
                channel_args=options,
            )
        return self._client

    async def _hang_up(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # it is being thrown away
                await client.close()


def _reason(error: Exception) -> str:
    """What went wrong, in one line for the log; tritonclient puts a status before the server's words."""
    text = " ".join(str(error).split())
    return f"{text or type(error).__name__}"[:300]
