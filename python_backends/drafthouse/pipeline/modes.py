"""Ways of speculating that can be compared: a mode is a set of switches, and each switch can be turned on its own."""

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """Who drafts, and how draft and verification take turns."""

    COSINE = "cosine"  # everything: routed drafters, fused trees, overlap, adaptation (arXiv 2503.10325)
    VANILLA = "vanilla"  # one drafter, a chain, draft and verify in turn
    SPECINFER = "specinfer"  # all drafters, each a chain of its own, merged into a tree (SpecInfer, arXiv 2305.09781)
    PIPELINE_ONLY = "pipeline_only"  # vanilla with overlap
    TARGET_ONLY = "target_only"  # nobody drafts: the baseline of speculation


class Overlap(StrEnum):
    """Whether drafting goes on while the target verifies."""

    ON = "on"
    OFF = "off"
    AUTO = "auto"  # whichever of the two brings more tokens per second, measured now and then


class Trees(StrEnum):
    """What several drafters' proposals become."""

    FUSED = "fused"  # the most confident proposals are the trunk, others its branches (CoSine, token fusion)
    MERGED = "merged"  # every drafter's own chain, identical beginnings once (SpecInfer)
    CHAIN = "chain"  # the first drafter's tokens only


@dataclass(frozen=True, slots=True)
class Switches:
    """The parts of a mode."""

    drafts: bool
    all_drafters: bool  # every drafter is at hand, not only `single_drafter`
    routing: bool  # the router chooses among them and weighs them; off = all of them with equal weights
    trees: Trees
    overlap: Overlap
    adaptation: bool  # depth and drafters follow acceptance and the stages' times; off = `num_draft_tokens`
    tetris: bool  # the verification goes to the batch's best nodes (arXiv 2502.15197); off = every request gets the same number


MODES = {
    Mode.COSINE: Switches(True, True, True, Trees.FUSED, Overlap.AUTO, True, True),
    Mode.VANILLA: Switches(True, False, False, Trees.CHAIN, Overlap.OFF, False, False),
    Mode.SPECINFER: Switches(True, True, False, Trees.MERGED, Overlap.OFF, False, False),
    Mode.PIPELINE_ONLY: Switches(True, False, False, Trees.CHAIN, Overlap.ON, False, False),
    Mode.TARGET_ONLY: Switches(False, False, False, Trees.CHAIN, Overlap.OFF, False, False),
}
