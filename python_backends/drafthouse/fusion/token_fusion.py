"""Confidence-based token fusion (CoSine, arXiv 2503.10325, token fusion) as pure functions.

Weighted confidence = routing weight × the drafter's own probability of its token. The weight matters: a drafter outside
its field is confidently wrong, so the raw probability picks the wrong token too often.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from drafthouse.core.tree import ROOT, DraftTree


class Proposal(NamedTuple):
    """One token that one drafter proposes at one position."""

    token: int
    confidence: float  # weighted confidence in [0, 1]: the estimated chance of acceptance, given that its parent was accepted
    source: int  # index of the drafter


class Branch(NamedTuple):
    """A proposal that did not become the trunk token at its position."""

    position: int  # index of the trunk token it is a sibling of
    proposal: Proposal
    reach: float  # estimated chance that the walk gets here and takes it


def _rank(proposal: Proposal) -> tuple[float, int, int]:
    return (-proposal.confidence, proposal.source, proposal.token)


def most_confident(proposals: Iterable[Proposal]) -> Proposal:
    """The proposal with the best weighted confidence; ties go to the lower drafter index, then to the lower token id.

    Raises ValueError when there is no proposal.
    """
    return min(proposals, key=_rank)


def select_branches(trunk: Sequence[Proposal], candidates: Sequence[Sequence[Proposal]], max_branches: int) -> list[Branch]:
    """The ``max_branches`` most promising proposals beside the trunk, in trunk order.

    Args:
        trunk: the trunk's tokens, [K].
        candidates: every candidate of every drafter at each trunk position, [K][any].
        max_branches: limit for the whole tree.

    Identical tokens at one position are merged (the most confident one stands for all), and none equals the trunk's.
    """
    branches: list[Branch] = []
    reached = 1.0
    for position, (chosen, offered) in enumerate(zip(trunk, candidates, strict=True)):
        seen = {chosen.token}
        for proposal in sorted(offered, key=_rank):
            if proposal.token not in seen:
                seen.add(proposal.token)
                branches.append(Branch(position, proposal, reached * proposal.confidence))
        reached *= chosen.confidence
    branches.sort(key=lambda branch: -branch.reach)
    return sorted(branches[:max_branches], key=lambda branch: branch.position)


def build_tree(trunk: Sequence[Proposal], branches: Sequence[Branch] = ()) -> DraftTree:
    """Trunk first (node i has parent i - 1), then each branch as a leaf beside the trunk token of its position."""
    nodes = [*trunk, *(branch.proposal for branch in branches)]
    parents = [*range(ROOT, len(trunk) - 1), *(branch.position - 1 for branch in branches)]
    return DraftTree(
        tokens=np.array([node.token for node in nodes], np.int32),
        parents=np.array(parents, np.int32),
        confidence=np.array([node.confidence for node in nodes], np.float32),
        source=np.array([node.source for node in nodes], np.int32),
    )
