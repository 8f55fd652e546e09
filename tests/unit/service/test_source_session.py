"""What a feed says of its source: to subscribers, and in the log."""

from __future__ import annotations

import pytest

from streamseg.config import SourceConfig
from streamseg.pipeline.metrics import Metrics
from streamseg.service.source_session import OpenedSource, SourceSession
from streamseg.sources import LiveSource, open_source

CONFIG = SourceConfig(url="rtsp://127.0.0.1:1/x", name="door")


class Said:
    """A feed of a camera, which isn't begun, and all that it says."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        source = open_source(CONFIG)
        assert isinstance(source, LiveSource)
        self.source = source
        opened = OpenedSource(source, CONFIG)
        self.feed = SourceSession(opened, 0, Metrics(), lambda *said: self.reasons.append(said[2]))


def test_no_password_in_the_words_of_others_is_passed_on() -> None:
    said = Said()
    said.source.tell("waiting", "http://h/a: no '/a?user=me&pwd=s3cret x'")
    assert said.reasons == ["http://h/a: no '/a?user=me&pwd=*** x'"]
    assert said.feed.condition.reason == said.reasons[0]


def test_a_camera_that_is_away_is_logged_once_though_subscribers_were_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = Said()
    said.feed.set_state("waiting", "for 1 subscribers")
    for _ in range(3):
        said.source.tell("connecting", "")
        said.source.tell("waiting", "connection refused")
    assert [record.message for record in caplog.records] == ["door: waiting: connection refused"]
