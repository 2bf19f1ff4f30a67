"""One drafter per request, and few different ones in a batch: every further drafter is a further call, in a process of its own.

CoSine routes each request by itself. Where drafting and verifying share cores, the calls of a batch are not free: eight requests that go
to five drafters cost five calls where one would have done, for differences in score that lie within their noise.
"""

import numpy as np
from numpy.typing import NDArray

AS_GOOD = 0.98  # share of the best score from which on a drafter counts as good as the best


def gather(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Give each request one drafter that is as good as its best, and the batch as few different ones as that allows.

    Greedy set cover: the drafter that is good enough for most requests takes them, then the next one takes from the rest.

    Args:
        scores: [R, D]; a drafter that may not work for a request has 0 or less. A row without any positive score gets its largest.

    Returns:
        The drafter of each request, [R].
    """
    best = scores.max(axis=1, keepdims=True)
    good = (scores == best) | ((scores > 0) & (scores >= AS_GOOD * best))  # in every row one at least, so that this ends
    chosen = np.full(len(scores), -1, np.int64)
    while (open_rows := chosen < 0).any():
        # The better one of equals, then the first: so a batch that does not change keeps its drafters.
        covered = good[open_rows].sum(axis=0) + scores[open_rows].clip(min=0).sum(axis=0) / (1 + scores.clip(min=0).sum())
        drafter = int(covered.argmax())
        chosen[open_rows & good[:, drafter]] = drafter
    return chosen
