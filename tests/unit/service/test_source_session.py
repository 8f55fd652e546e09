"""Source sessions: published and logged states."""

from __future__ import annotations

import pytest

from streamseg.config import SourceConfig
from streamseg.pipeline.metrics import Metrics
from streamseg.service.source_session import OpenedSource, SourceSession
from streamseg.sources import LiveSource, open_source

CONFIG = SourceConfig(url="rtsp://127.0.0.1:1/x", name="door")


class CameraSession:
    """Session of a camera that is not started; records the published reasons."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        source = open_source(CONFIG)
        assert isinstance(source, LiveSource)
        self.source = source
        self.session = SourceSession(
            OpenedSource(source, CONFIG),
            0,
            Metrics(),
            lambda _source, _state, reason, _epoch: self.reasons.append(reason),
        )


def test_passwords_in_the_reason_of_a_state_are_redacted() -> None:
    camera = CameraSession()
    camera.source.on_state("waiting", "http://h/a: no '/a?user=me&pwd=s3cret x'")
    assert camera.reasons == ["http://h/a: no '/a?user=me&pwd=*** x'"]
    assert camera.session.condition.reason == camera.reasons[0]


def test_a_lost_camera_is_logged_once_even_after_waiting_for_subscribers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    camera = CameraSession()
    camera.session.set_state("waiting", "for 1 subscribers")
    for _ in range(3):
        camera.source.on_state("connecting", "")
        camera.source.on_state("waiting", "connection refused")
    assert [record.message for record in caplog.records] == ["door: waiting: connection refused"]
