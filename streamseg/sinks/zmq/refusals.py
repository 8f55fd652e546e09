"""Count and log of refused connections, for authentication and the connection limiter."""

from __future__ import annotations

import logging
import time

from streamseg.pipeline.metrics import Metrics

log = logging.getLogger(__name__)

LOG_INTERVAL = 1.0
"""Minimum seconds between two log lines for the same reason."""


class RefusalLog:
    """Counts refused and closed connections, and logs them at a limited rate."""

    def __init__(self, metrics: Metrics) -> None:
        self._counter = metrics.refused
        self._logged_at: dict[str, float] = {}

    def add(self, reason: str, message: str) -> None:
        """Count and log one refusal.

        Args:
            reason: ``key``, ``full``, ``half_open``, ``loud`` or ``revoked``.
            message: log message.
        """
        self._counter.labels(reason).inc()
        now = time.monotonic()
        if now - self._logged_at.get(reason, -LOG_INTERVAL) >= LOG_INTERVAL:
            self._logged_at[reason] = now
            log.warning(message)
