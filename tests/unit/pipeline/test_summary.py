"""Summary of a run: counts of frames, instances and tracks, for each source."""

from __future__ import annotations

import pytest
from support.publishers import instances, result

from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.summary import RunStatistics


def test_empty_run_has_no_rate_and_no_percentiles() -> None:
    metrics = Metrics()
    metrics.account("gate")
    summary = RunStatistics("nanomask", metrics).summary()
    assert (summary.frames, summary.seconds, summary.fps, summary.images_dropped) == (0, 0, 0, 0)
    assert summary.age_ms == summary.timing_ms == {}
    (gate,) = summary.sources
    assert (gate.instances, gate.tracks, gate.size) == (0, 0, None)


def test_tracks_are_counted_once_in_each_epoch() -> None:
    metrics = Metrics()
    for name in ("gate", "yard"):
        metrics.account(name)
    statistics = RunStatistics("nanomask", metrics)
    found = instances(2)
    results = [
        result(index, source, epoch=epoch, found=found.with_track_ids(track_ids))
        for index, (source, epoch, track_ids) in enumerate(
            [
                ("gate", 0, [0, 1]),
                ("yard", 0, [0, -1]),
                ("gate", 0, [1, 2]),
                ("gate", 1, [0, -1]),
                ("gate", 1, [0, 1]),
                ("gate", 1, [-1, -1]),
                ("gate", 1, [0, 1]),
            ]
        )
    ]
    assert list(statistics.count_results(results)) == results
    summary = statistics.summary()
    assert summary.frames == 7
    assert summary.timing_ms == {"forward": pytest.approx(12.5)}
    assert [(s.source, s.instances, s.tracks) for s in summary.sources] == [
        ("gate", 12, 5),
        ("yard", 2, 1),
    ]
