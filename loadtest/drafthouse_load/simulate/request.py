"""A simulated request: what policies may see of it, and what only the simulator knows."""

from drafthouse.scheduling.tenure import Tenure
from drafthouse_load.simulate.workload import Workload


class SimulatedRequest:
    """Has everything of `drafthouse.scheduling.policy.Schedulable` as plain attributes: they are read millions of times."""

    __slots__ = (
        "arrival_ns",
        "attained_ns",
        "domain",
        "end_round",
        "first_round",
        "first_token_ns",
        "holds_slot",
        "is_running",
        "lost_cache",
        "max_tokens",
        "next_round",
        "num_accepted",
        "num_drafted",
        "num_output_tokens",
        "num_uncached",
        "num_verifications",
        "output_len",
        "priority",
        "prompt_len",
        "request_uid",
        "sequence_no",
        "tenure",
    )

    def __init__(self, index: int, workload: Workload, max_tokens: int) -> None:
        """Request ``index`` of a workload, as it arrives."""
        self.request_uid = index
        self.sequence_no = index
        self.priority = 0
        self.arrival_ns = int(workload.arrival_ns[index])
        self.domain = workload.domain(index)
        self.prompt_len = int(workload.prompt_len[index])
        self.num_output_tokens = 0
        self.max_tokens = max_tokens
        self.num_uncached = self.prompt_len
        self.num_verifications = 0
        self.num_drafted = 0
        self.num_accepted = 0
        self.attained_ns = 0
        self.is_running = False
        self.holds_slot = False
        self.tenure = Tenure()
        # Only for the simulator, the oracle and what stands for an imperfect prediction.
        self.output_len = int(workload.output_len[index])
        self.first_round = self.next_round = int(workload.first_round[index])  # index into the workload's rounds
        self.end_round = int(workload.first_round[index + 1])
        self.first_token_ns = 0
        self.lost_cache = False  # it had one once, and gave it up

    @property
    def has_earned_slot(self) -> bool:
        """See `Schedulable`."""
        return self.tenure.is_earned
