"""The `target` and `drafter_*` models: an engine behind the step contract."""

from collections.abc import Mapping

from drafthouse.engine.engine import load_engine
from drafthouse.engine.options import EngineOptions
from drafthouse.triton.codec.engine import pack_step_result, unpack_step
from drafthouse.triton.codec.envelope import Tensors
from drafthouse.triton.codec.rows import unpack_release
from drafthouse.triton.inner_model import InnerModel
from drafthouse.triton.parameters import Parameters, version_folder
from drafthouse.triton.schema import ENGINE

KNOWN = "slots, num_threads, min_step_tokens, calibration_ms"


class EngineModel(InnerModel):
    """Triton's view of an `engine.contract.Engine`."""

    messages = ENGINE

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine file that lies in the version folder."""
        parameters = Parameters.from_triton(args)
        options = EngineOptions(
            slots=parameters.integer("slots", 8, 1, 4096),
            num_threads=parameters.integer("num_threads", 1, 1, 1024),
            min_step_tokens=parameters.integer("min_step_tokens", 2, 1, 2),
            calibration_ms=parameters.integer("calibration_ms", 300, 0, 60_000),
            device_id=int(args.get("model_instance_device_id", "0")),  # from the instance group
        )
        parameters.finish(KNOWN)
        self._engine = load_engine(version_folder(args), options)

    def answer(self, sections: Tensors) -> Tensors:
        """Release, then step; a call with neither answers the engine's status."""
        self._engine.release(unpack_release(sections))
        call = unpack_step(sections)
        return pack_step_result(self._engine.step(call) if call.rows else self._engine.status())
