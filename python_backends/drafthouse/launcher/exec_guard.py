"""Becomes another program that cannot outlive its parent, nor open its shared memory to other users.

Run as `python -I -S exec_guard.py PARENT_PID PROGRAM ARG…`. A program of its own, not a `preexec_fn`: between fork and exec of a
process with threads nothing but exec is safe. Standard library only: it runs before any package is importable.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER = 1
_SPEC_ALLOW = 1 << 2
"""Without this flag kernels before 5.16 slow down every filtered process against Spectre."""
_MACHINES = {"x86_64": (0xC000003E, 91, 317), "aarch64": (0xC00000B7, 52, 277)}
"""Audit number of the architecture (linux/audit.h), system calls fchmod and seccomp (asm/unistd.h)."""
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # opcodes of linux/bpf_common.h
_ARCH_AT, _CALL_AT, _SECOND_ARGUMENT_AT = 4, 0, 24  # fields of struct seccomp_data, little endian
_ALLOW, _SKIP_AS_DONE = 0x7FFF0000, 0x00050000
_GROUP_AND_OTHERS = 0o077
_PRIVATE_UMASK = 0o077


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def main() -> None:
    """Asks the kernel for SIGTERM on the parent's death and for private shared memory (both kept across exec), then replaces itself."""
    parent, program = int(sys.argv[1]), sys.argv[2]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    os.umask(_PRIVATE_UMASK)
    _keep_files_private(libc)
    # The parent may have died before the kernel was asked.
    if os.getppid() != parent:
        sys.exit("the launcher ended before the server started")
    os.execv(program, sys.argv[2:])


def _keep_files_private(libc: ctypes.CDLL) -> None:
    """From here on every fchmod that would let others in is skipped.

    Triton's shared memory (Boost.Interprocess) sets mode 0644 by fchmod right after creating a region, whatever the umask.
    Taking that back later would be too late: who opened the region in between keeps reading it. Where the kernel takes no
    filter the server starts all the same, and the launcher tells when it finds regions open to others.
    """
    if platform.machine() not in _MACHINES:
        return
    arch, fchmod, seccomp = _MACHINES[platform.machine()]
    program = _Program(8, _filter(arch, fchmod))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, _SPEC_ALLOW, ctypes.byref(program))


def _filter(arch: int, fchmod: int) -> bytes:
    """Eight instructions (struct sock_filter: code, jump if true, jump if false, constant); jumps count from the next one."""
    return b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, _ARCH_AT),
            (_IF_EQUAL, 0, 4, arch),
            (_LOAD, 0, 0, _CALL_AT),
            (_IF_EQUAL, 0, 2, fchmod),
            (_LOAD, 0, 0, _SECOND_ARGUMENT_AT),
            (_IF_ANY_BIT, 1, 0, _GROUP_AND_OTHERS),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _SKIP_AS_DONE),
        )
    )


if __name__ == "__main__":
    main()
