"""Freshness of live results: newest frames, dropping of old ones, and ages."""

from __future__ import annotations

import time

import numpy as np

from streamseg.pipeline.mailbox import Mailbox
from streamseg.pipeline.metrics import RECENT, RecentAges
from streamseg.pipeline.stages import drop_stale
from streamseg.structures.results import Frame


def make_frame(source: str, index: int, age: float = 0.0) -> Frame:
    image = np.zeros((4, 4, 3), np.uint8)
    return Frame(source, index, 0, index / 25, time.time(), time.monotonic() - age, image)


def test_mailbox_keeps_the_newest_frame_of_a_live_source_and_all_of_recordings() -> None:
    inbox: Mailbox[Frame] = Mailbox(4)
    overtaken: list[int] = []
    newest = inbox.newest(lambda lost: overtaken.append(lost.index))
    for index in range(3):
        newest.put(make_frame("camera", index))
        inbox.put(make_frame("file", index))
    taken = [inbox.get(0) for _ in range(len(inbox))]
    by_source = [(item.source, item.index) for item in taken if item is not None]
    assert overtaken == [0, 1]
    assert by_source == [("camera", 2), ("file", 0), ("file", 1), ("file", 2)]


def test_old_frames_of_live_sources_are_dropped_before_inference() -> None:
    old, new, recorded = (
        make_frame("camera", 0, age=2),
        make_frame("camera", 1),
        make_frame("file", 0, age=9),
    )
    dropped: list[Frame] = []
    batches = drop_stale([[old, new, recorded], [old]], 1.0, "camera".__eq__, dropped.append)
    assert list(batches) == [[new, recorded]]
    assert dropped == [old, old]


def test_the_p99_covers_recent_results_only() -> None:
    now = [0.0]
    ages = RecentAges(lambda: now[0])
    assert ages.p99() == 0
    ages.add(100.0)
    now[0] = RECENT + 1
    for hundredths in range(1, 101):
        ages.add(hundredths / 100)
    assert ages.p99() == 0.99
    assert len(ages) == 100, "older ages are removed"
