"""A request as schedulers see it, its figures free to set."""

from __future__ import annotations

from dataclasses import dataclass, field

from drafthouse.scheduling.estimates.lengths import LengthError, LengthPredictor
from drafthouse.scheduling.estimates.service import Estimator
from drafthouse.scheduling.policy import Schedulable
from drafthouse.scheduling.tenure import Tenure


@dataclass(slots=True)
class EstimatedRequest:
    """Implements `Schedulable`."""

    request_uid: int
    domain: str = ""
    prompt_len: int = 100
    max_tokens: int = 100_000
    num_output_tokens: int = 0
    num_uncached: int = 1
    num_verifications: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    attained_ns: int = 0
    sequence_no: int = 0
    priority: int = 0
    arrival_ns: int = 0
    is_running: bool = False
    holds_slot: bool = False
    tenure: Tenure = field(default_factory=Tenure)

    @property
    def has_earned_slot(self) -> bool:
        """As the server has it."""
        return self.tenure.is_earned

    def run_round(self, estimator: Estimator, num_drafted: int, num_accepted: int, draft_ns: int = 20, verify_ns: int = 80) -> None:
        """One round of which all accepted tokens and the target's own are emitted."""
        self.num_output_tokens = min(self.num_output_tokens + num_accepted + 1, self.max_tokens)
        self.num_verifications += 1
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        self.attained_ns += draft_ns + verify_ns
        estimator.saw_round(self, num_drafted, num_accepted, draft_ns, verify_ns)


class KnownLengths:
    """A length predictor that was told the lengths."""

    name = "known"

    def __init__(self, lengths: dict[int, int]) -> None:
        self.lengths = lengths
        self.ends: list[tuple[int, bool]] = []

    def predict_remaining(self, request: Schedulable) -> float:
        """What is left of the length it was told."""
        return float(max(1, self.lengths[request.request_uid] - request.num_output_tokens))

    def observe(self, request: Schedulable, finished: bool) -> None:
        """Only notes it."""
        self.ends.append((request.request_uid, finished))

    def error(self) -> LengthError:
        """It makes none."""
        return LengthError(len(self.ends), 0.0, 0.0, 0.0, 0.0, 0.0)


def end_with(predictor: LengthPredictor, request: EstimatedRequest, length: int) -> None:
    """Ask for a prediction at arrival; then the request generates ``length`` tokens, or is cut at its ``max_tokens``."""
    predictor.predict_remaining(request)
    request.num_output_tokens = min(length, request.max_tokens)
    predictor.observe(request, finished=length <= request.max_tokens)
