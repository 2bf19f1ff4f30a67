"""The `router` model: decides which drafters work for which request. Stateless."""

import asyncio
import json
from collections.abc import Mapping

from drafthouse.routing.registry import DEFAULT_POLICY, load_router
from drafthouse.triton.codec.envelope import Tensors
from drafthouse.triton.codec.routing import pack_route_result, unpack_route
from drafthouse.triton.inner_model import InnerModel
from drafthouse.triton.parameters import Parameters, version_folder
from drafthouse.triton.schema import ROUTER


class RouterModel(InnerModel):
    """Triton's view of a `routing.contract.Router`."""

    messages = ROUTER

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the router's tables."""
        parameters = Parameters.from_triton(args)
        policy = parameters.text("policy", DEFAULT_POLICY)
        options = {name: json.loads(value) for name, value in parameters.rest().items()}
        self._router = load_router(version_folder(args), policy, options)
        self._loop = asyncio.new_event_loop()

    def answer(self, sections: Tensors) -> Tensors:
        """One routing call."""
        return pack_route_result(self._loop.run_until_complete(self._router.route(unpack_route(sections))))
