"""Which sources are on the viewer's page when the service speaks no more of them."""

from __future__ import annotations

import msgspec
from support.subscribers import status_json

from streamseg import protocol
from streamseg.viewer.dashboard_state import FORGET_AFTER, Board


def status(state="live", seq=0, *, source="", started="one"):
    said = status_json(state, seq, source=source, started=started)
    return msgspec.json.decode(said, type=protocol.StatusMessage)


class Watched:
    """A board of a service that goes on, fed every second with all that was ever heard."""

    def __init__(self) -> None:
        self.board = Board("tcp://x:1")
        self.statuses = {}
        self.now = 0.0

    def on_page_after(self, seconds: float) -> list[list[str]]:
        """The sources on the page, each time that they are others than before."""
        seen: list[list[str]] = []
        for _ in range(round(seconds)):
            self.now += 1
            self.statuses[""] = status(seq=int(self.now))
            self.board.hear(self.statuses, {}, 0, self.now)
            self.board.end_second(self.now)
            shown = [view.source for view in self.board.message(self.now).sources]
            if [shown] != seen[-1:]:
                seen.append(shown)
        return seen


def test_a_source_that_was_taken_away_does_not_come_back() -> None:
    it = Watched()
    it.statuses["yard"] = status("ended", 5, source="yard")
    assert it.on_page_after(5 * FORGET_AFTER) == [["yard"], []]


def test_a_source_that_was_taken_away_is_shown_again_when_it_is_spoken_of() -> None:
    it = Watched()
    for said in (
        status("ended", 5, source="yard"),
        status("live", 6, source="yard"),
        status("live", 6, source="yard", started="two"),
    ):
        it.statuses["yard"] = said
        assert it.on_page_after(2 * FORGET_AFTER) == [["yard"], []]


def test_what_is_remembered_of_a_source_goes_with_its_status() -> None:
    it = Watched()
    it.statuses["yard"] = status("ended", 5, source="yard")
    it.on_page_after(2 * FORGET_AFTER)
    assert set(it.board._forgotten) == {"yard"}
    del it.statuses["yard"]  # as in a new subscriber
    it.on_page_after(1)
    assert not it.board._forgotten
