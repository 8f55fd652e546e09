"""Label of each track by a vote of its last observations.

A detector may take one object for a car in this frame and for a truck in the next. The tracker
carries the identity through (``across_classes``); here one label is chosen for it. Identities,
scores, boxes and masks stay as they are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from math import fsum

from streamseg.structures.masks import IntArray
from streamseg.structures.results import NOT_TRACKED, Instances


@dataclass(slots=True)
class LabelVote:
    """Vote over the labels of one stream's tracks, each observation weighted by its score.

    Of labels with equal weight, the one published before wins, then the one observed last. The
    outcome depends on the frames alone, and a pickled copy goes on as the original would.

    Attributes:
        observations: how many of a track's last observations vote.
    """

    observations: int
    _ballots: dict[int, _Ballot] = field(default_factory=dict)

    def update(self, instances: Instances, known_ids: IntArray) -> Instances:
        """Return the same rows in the same order with the labels of their tracks.

        Args:
            instances: of the next frame, with ``track_ids``; rows without one keep their label.
            known_ids: int64 (T,), tracks that may still be continued; all others are forgotten.
        """
        known = set(known_ids.tolist())
        self._ballots = {track: b for track, b in self._ballots.items() if track in known}
        labels = instances.labels.copy()
        tracks, scores = instances.track_ids.tolist(), instances.scores.tolist()
        for row, (track, score) in enumerate(zip(tracks, scores, strict=True)):
            if track != NOT_TRACKED:
                if track not in self._ballots:
                    self._ballots[track] = _Ballot(deque(maxlen=self.observations))
                labels[row] = self._ballots[track].count(int(labels[row]), score)
        return replace(instances, labels=labels)


@dataclass(slots=True)
class _Ballot:
    """The last observations of one track: labels and scores, oldest first."""

    votes: deque[tuple[int, float]]
    label: int | None = None

    def count(self, label: int, score: float) -> int:
        """Add an observation and return the label that has the most weight now."""
        self.votes.append((label, score))
        scores: dict[int, list[float]] = {}
        for voted, weight in self.votes:
            scores.setdefault(voted, []).append(weight)
        weights = {voted: fsum(own) for voted, own in scores.items()}
        most = max(weights.values())
        if self.label is None or weights.get(self.label) != most:
            self.label = next(voted for voted, _ in reversed(self.votes) if weights[voted] == most)
        return self.label
