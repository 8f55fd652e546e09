"""One heap for all threads, because the model runs in a thread and its tensors are large.

glibc gives each thread a heap of its own, of at most 64 MiB: what doesn't fit is mapped anew, page
by page, at each allocation. A Mask R-CNN lost 8 to 16 % of its speed by that.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # malloc.h


def share_heap() -> None:
    """Have the threads that are started from now on use the main heap; without glibc, nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
