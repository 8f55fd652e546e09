"""Label vote: one class per track, by a weighted vote over its latest observations.

A detector may classify an object as a car in one frame and as a truck in the next. The tracker
keeps the track id (``across_classes``), and the vote chooses one label for the track. Track ids,
scores, boxes and masks are not changed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from math import fsum

from streamseg.structures.masks import IntArray
from streamseg.structures.results import NOT_TRACKED, Instances


@dataclass(slots=True)
class LabelVote:
    """Vote over the labels of the tracks of one stream, weighted by score.

    Between labels of equal weight, the previously chosen one wins, then the latest one. The result
    depends on the frames only; a pickled copy continues exactly like the original.

    Attributes:
        observations: number of latest observations of a track that are counted.
    """

    observations: int
    _ballots: dict[int, _Ballot] = field(default_factory=dict)

    def update(self, instances: Instances, known_ids: IntArray) -> Instances:
        """Return the same rows in the same order, with the labels of their tracks.

        Args:
            instances: tracked instances of the next frame; untracked rows keep their labels.
            known_ids: int64 (T,), ids of tracks that may still be continued.
        """
        known = set(known_ids.tolist())
        self._ballots = {track: b for track, b in self._ballots.items() if track in known}
        labels = instances.labels.copy()
        tracks, scores = instances.track_ids.tolist(), instances.scores.tolist()
        for row, (track, score) in enumerate(zip(tracks, scores, strict=True)):
            if track != NOT_TRACKED:
                if track not in self._ballots:
                    self._ballots[track] = _Ballot(deque(maxlen=self.observations))
                labels[row] = self._ballots[track].add(int(labels[row]), score)
        return replace(instances, labels=labels)


@dataclass(slots=True)
class _Ballot:
    """Latest observations of one track: labels and scores, oldest first."""

    votes: deque[tuple[int, float]]
    label: int | None = None

    def add(self, label: int, score: float) -> int:
        """Add an observation and return the label with the largest weight."""
        self.votes.append((label, score))
        scores: dict[int, list[float]] = {}
        for vote, vote_score in self.votes:
            scores.setdefault(vote, []).append(vote_score)
        weights = {vote: fsum(vote_scores) for vote, vote_scores in scores.items()}
        largest = max(weights.values())
        if self.label is None or weights.get(self.label) != largest:
            self.label = next(vote for vote, _ in reversed(self.votes) if weights[vote] == largest)
        return self.label
