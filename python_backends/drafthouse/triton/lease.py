"""The lease secret: only `cosine` and `fusion` may call engines, fusion and router.

Triton serves every model of the repository on the same ports, so the inner models are reachable by anyone who reaches
the server. The launcher puts a random secret into the environment of the server; a call without it is refused before
anything is read from it.
"""

import hmac
import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.environment import LEASE_VARIABLE
from drafthouse.core.errors import ClientError, ErrorCode, ServerError
from drafthouse.triton.codec.envelope import Array
from drafthouse.triton.schema import LEASE_SECRET

MIN_SECRET_BYTES = 16


class Lease:
    """The secret of this run, to attach and to check."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ServerError(ErrorCode.UNAVAILABLE, LEASE_VARIABLE, f"{len(secret)} bytes", f"at least {MIN_SECRET_BYTES} bytes")
        self._secret = secret
        self._array = np.frombuffer(secret, np.uint8)

    @classmethod
    def from_environment(cls) -> "Lease":
        """Read the secret that the launcher set. Raises ServerError when it is missing or too short."""
        return cls(os.environ.get(LEASE_VARIABLE, "").encode())

    @property
    def section(self) -> NDArray[np.uint8]:
        """The secret as the `lease_secret` section of a message."""
        return self._array

    def check(self, sections: Mapping[str, Array]) -> None:
        """Raise ClientError unless the call carries the secret. Constant time in the secret's content."""
        given = sections.get(LEASE_SECRET.name)
        if given is None or not hmac.compare_digest(given.tobytes(), self._secret):
            raise ClientError(ErrorCode.INVALID_ARG, LEASE_SECRET.name, allowed="calls from this server's own models only")
