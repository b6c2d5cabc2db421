"""Memory that a training step frees stays with the process for the next step."""

import ctypes
import sys

# parameters of mallopt(3), from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory(pad: int = 256 << 20) -> bool:
    """Tell glibc not to return freed memory to the system.

    A training step allocates and frees the same large tensors again and again. By default each of them is mapped anew,
    and the kernel clears its pages one fault at a time, which can take most of a step on a CPU.

    Args:
        pad: bytes by which the heap grows at least, when it has to.

    Returns:
        Whether there is such a switch: glibc on Linux has it. Elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version")):  # musl
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: pad}  # no mappings, no trimming, big steps
    return all(libc.mallopt(name, value) == 1 for name, value in settings.items())
