"""glibc allocator setting: one heap for all threads.

glibc gives each thread a heap of its own of at most 64 MiB. Larger allocations are mapped page by
page each time, and a model that runs in a thread has large tensors: a Mask R-CNN lost 8 to 16 % of
its speed.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # malloc.h


def share_heap() -> None:
    """Let threads that are started from now on use the main heap; without glibc, do nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
