"""Fuzzing: mutated inputs for every part that reads what users, cameras and peers provide.

``mutation`` changes inputs, ``trial`` runs one input in a limited child process, ``canary`` detects
requests to places that are not allowed, ``files`` and ``network`` define what is fuzzed.
"""

from __future__ import annotations

import os

# One thread for each library: trials are forked, and threads do not survive that.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
