"""Work arrays that are used again: fresh ones of this size come from the system page by page, which costs more than the arithmetic."""

import numpy as np
from numpy.typing import NDArray


class Scratch:
    """Named arrays ``[n, V]`` that keep their memory between calls; a name's content lasts until the name is asked for again."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._floats: dict[str, NDArray[np.float32]] = {}
        self._bools = np.empty((0, width), np.bool_)

    def floats(self, name: str, rows: int) -> NDArray[np.float32]:
        held = self._floats.get(name)
        if held is None or len(held) < rows:
            held = self._floats[name] = np.empty((rows, self._width), np.float32)
        return held[:rows]

    def bools(self, rows: int) -> NDArray[np.bool_]:
        if len(self._bools) < rows:
            self._bools = np.empty((rows, self._width), np.bool_)
        return self._bools[:rows]
