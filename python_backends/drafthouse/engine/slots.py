"""Who owns which cache slot, and how much of a slot's cache a new call can use again.

An entry remembers the tokens behind its cache: the committed chain, and the draft nodes of the last call that lie behind it. A caller
that accepted some of those drafts simply sends them as committed tokens: they are recognised by their token ids and not computed again.
"""

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.tree import ROOT
from drafthouse.engine.contract import RowStatus, StepRow

IntArray = NDArray[np.int64]
LEASE_S = 60.0  # far longer than any round: a living caller names its requests in every one


@dataclass(slots=True)
class CacheEntry:
    """One request's slot. Cache row i holds committed token i; row ``committed_len + j`` holds draft node j."""

    slot: int
    tokens: NDArray[np.int32]  # [S], valid up to committed_len
    committed_len: int = 0
    draft_tokens: list[int] = field(default_factory=list)
    draft_parents: list[int] | None = None  # index of a draft node or ROOT; None = a chain
    last_used_s: float = 0.0  # when a call last named the request

    def reusable(self, row: StepRow, most: int) -> tuple[int, list[int]]:
        """How many of the row's first tokens are cached (at most ``most``), and the draft nodes that hold the last of them."""
        start = row.prefix_len
        overlap = min(self.committed_len - start, most)
        if overlap > 0:
            differs = self.tokens[start : start + overlap] != row.tokens[:overlap]
            if differs.any():
                return int(differs.argmax()), []
        if overlap == most or not self.draft_tokens:
            return overlap, []
        path = self._draft_path(row.tokens[overlap:most].tolist())
        return overlap + len(path), path

    def keep_path(self, path: Sequence[int], row: StepRow, reused: int) -> tuple[IntArray, IntArray] | None:
        """Makes the first ``reused`` tokens of ``row`` the committed chain and forgets all drafts.

        Returns the cache rows to copy (from, to) where the accepted path does not lie there already.
        """
        before = self.committed_len
        self.tokens[row.prefix_len : row.prefix_len + reused] = row.tokens[:reused]
        self.committed_len = row.prefix_len + reused
        self.forget_drafts()
        if not path or path[-1] == len(path) - 1:
            return None
        return before + np.array(path, np.int64), before + np.arange(len(path))

    def commit(self, row: StepRow, is_chain: bool) -> None:
        """Records that all of the row's tokens are in the cache now; ``is_chain``: the draft has no branches."""
        end = row.prefix_len + row.num_committed
        self.tokens[row.prefix_len : end] = row.tokens[: row.num_committed]
        self.committed_len = end
        self.draft_tokens = row.tokens[row.num_committed :].tolist()
        shift = row.num_committed
        self.draft_parents = None if is_chain or row.parents is None else (row.parents[shift:] - shift).tolist()

    def extend_draft(self, token: int) -> None:
        """Appends a self-extended token to a draft that is a chain."""
        self.draft_tokens.append(token)

    def forget_drafts(self) -> None:
        self.draft_tokens = []
        self.draft_parents = None

    def forget_all(self) -> None:
        self.committed_len = 0
        self.forget_drafts()

    def draft_paths(self) -> list[list[int]]:
        """For every draft node the tokens from the first draft token down to the node's own."""
        paths: list[list[int]] = []
        for node, token in enumerate(self.draft_tokens):
            parent = node - 1 if self.draft_parents is None else self.draft_parents[node]
            paths.append([*(paths[parent] if parent != ROOT else []), token])
        return paths

    def _draft_path(self, tokens: Sequence[int]) -> list[int]:
        """Draft nodes that spell the longest possible beginning of ``tokens``."""
        if self.draft_parents is None:
            length = 0
            for sent, held in zip(tokens, self.draft_tokens, strict=False):
                if sent != held:
                    break
                length += 1
            return list(range(length))
        child_of: dict[tuple[int, int], int] = {}
        for child, key in enumerate(zip(self.draft_parents, self.draft_tokens, strict=True)):
            child_of.setdefault(key, child)
        path: list[int] = []
        for token in tokens:
            node = child_of.get((path[-1] if path else ROOT, token))
            if node is None:
                break
            path.append(node)
        return path


class SlotTable:
    """Gives the lowest free slot to each new request, so that the slots in use stay close together.

    A caller that died never releases. So when no slot is free, a request that no call has named for `LEASE_S` loses its
    slot to a new one; should it come back after all, it is prefilled again and its text is the same.
    """

    def __init__(self, num_slots: int, context_len: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_slots = num_slots
        self.context_len = context_len
        self._entries: dict[int, CacheEntry] = {}
        self._by_slot: dict[int, CacheEntry] = {}
        self._free = list(range(num_slots))
        self._clock = clock

    @property
    def num_free(self) -> int:
        return len(self._free)

    def cached_len(self, request_uid: int) -> int:
        """Committed tokens held for a request; 0 for an unknown one."""
        entry = self._entries.get(request_uid)
        return entry.committed_len if entry else 0

    def spare_row(self, slot: int) -> int:
        """The first cache row of ``slot`` that holds nothing of use."""
        entry = self._by_slot.get(slot)
        return entry.committed_len + len(entry.draft_tokens) if entry else 0

    def rows_in_use(self) -> int:
        """Cache rows of the fullest slot that hold something of use."""
        return max((entry.committed_len + len(entry.draft_tokens) for entry in self._by_slot.values()), default=0)

    def admit(self, row: StepRow) -> CacheEntry | RowStatus:
        """The entry for ``row``, new where the request is; or the reason why the row cannot run now."""
        entry = self._entries.get(row.request_uid)
        if entry is None:
            if row.prefix_len > 0:
                return RowStatus.NEEDS_PREFILL
            if not self._free and not self._evict_expired():
                return RowStatus.NO_SLOT
            slot = heapq.heappop(self._free)
            entry = CacheEntry(slot, np.zeros(self.context_len, np.int32))
            self._entries[row.request_uid] = self._by_slot[slot] = entry
        entry.last_used_s = self._clock()
        return RowStatus.NEEDS_PREFILL if row.prefix_len > entry.committed_len else entry

    def release(self, request_uids: Sequence[int]) -> None:
        """Frees the slots of these requests; unknown ones are ignored."""
        for request_uid in request_uids:
            entry = self._entries.pop(request_uid, None)
            if entry is not None:
                del self._by_slot[entry.slot]
                heapq.heappush(self._free, entry.slot)

    def forget_all(self) -> None:
        """No slot holds anything of use any more; requests keep theirs."""
        for entry in self._entries.values():
            entry.forget_all()

    def _evict_expired(self) -> bool:
        """Frees the slot of the request that was not named for longest, if that is long enough."""
        oldest = min(self._entries, key=lambda uid: self._entries[uid].last_used_s)
        expired = self._clock() - self._entries[oldest].last_used_s > LEASE_S
        if expired:
            self.release([oldest])
        return expired
