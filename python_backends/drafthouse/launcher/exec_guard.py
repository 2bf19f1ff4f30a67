"""Becomes another program that cannot outlive its parent. Run as `python -I -S exec_guard.py PARENT_PID PROGRAM ARG…`.

A program of its own, not a `preexec_fn`: between fork and exec of a process with threads nothing but exec is safe.
Standard library only: it runs before any package is importable.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Asks the kernel for SIGTERM on the parent's death (kept across exec), then replaces itself."""
    parent, program = int(sys.argv[1]), sys.argv[2]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    # The parent may have died before the kernel was asked.
    if os.getppid() != parent:
        sys.exit("the launcher ended before the server started")
    os.execv(program, sys.argv[2:])


if __name__ == "__main__":
    main()
