"""Prediction in a process created by ``fork``.

The OpenMP threads that torch started before don't exist in the new process, and work that is
given to them never ends; with one thread, torch needs no others. CUDA can't be used at all.
"""

from __future__ import annotations

import logging
import os

import torch

log = logging.getLogger(__name__)

_IMPORTED_IN = os.getpid()


def adapt_to_fork() -> None:
    """Make torch use one thread if this process was forked after it was imported."""
    if os.getpid() != _IMPORTED_IN and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        log.warning(
            "process %d was forked: torch uses one thread in it; start processes with spawn and "
            "load the model there to use more",
            os.getpid(),
        )
