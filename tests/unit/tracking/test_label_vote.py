"""Label vote: the class of a track, by its latest observations."""

from __future__ import annotations

import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamseg.config import TrackerConfig
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.stages import track
from streamseg.structures.masks import Masks
from streamseg.structures.results import Frame, Instances, Result
from streamseg.tracking.label_vote import LabelVote

CAR, TRUCK, BUS = 3, 8, 6
NAMES = {CAR: "car", TRUCK: "truck", BUS: "bus"}
SIZE = (60, 80)

Row = tuple[int, int, float]
"""Track id, label and score."""


def instances_with(*rows: Row) -> Instances:
    boxes = np.array([(i, i, i + 20, i + 10) for i in range(len(rows))], np.float32).reshape(-1, 4)
    tracks, labels, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Instances(
        boxes,
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        Masks.from_boxes(boxes, SIZE),
        NAMES,
        np.array(tracks, np.int64),
    )


def published_names(vote: LabelVote, *observations: tuple[int, float]) -> list[str]:
    """Return the name of track 1 after each observation (label, score)."""
    known = np.array([1])
    return [vote.update(instances_with((1, *each)), known).names[0] for each in observations]


def test_label_with_the_largest_weight_is_chosen():
    assert published_names(LabelVote(10), (CAR, 0.6), (TRUCK, 0.5), (CAR, 0.5), (TRUCK, 0.7)) == [
        "car",
        "car",
        "car",
        "truck",
    ]


def test_one_high_score_outweighs_several_low_scores():
    assert published_names(LabelVote(10), *[(CAR, 0.25)] * 3, (TRUCK, 0.875))[-1] == "truck"


def test_only_the_latest_observations_are_counted():
    names = published_names(LabelVote(3), *[(CAR, 0.9)] * 20, *[(TRUCK, 0.4)] * 3)
    assert names == ["car"] * 22 + ["truck"]


def test_previous_label_wins_a_tie():
    assert (
        published_names(LabelVote(10), (CAR, 0.5), (TRUCK, 0.5), (CAR, 0.5), (TRUCK, 0.5))
        == ["car"] * 4
    )
    assert published_names(LabelVote(2), (CAR, 0.5), (TRUCK, 0.5), (BUS, 0.5)) == [
        "car",
        "car",
        "bus",
    ]


def test_only_labels_change_and_the_input_is_not_modified():
    vote = LabelVote(5)
    vote.update(instances_with((1, CAR, 0.9), (2, BUS, 0.8)), np.array([1, 2]))
    original = instances_with((1, TRUCK, 0.5), (-1, TRUCK, 0.9), (2, BUS, 0.7))
    voted = vote.update(original, np.array([1, 2]))
    assert original.labels.tolist() == [TRUCK, TRUCK, BUS]
    assert voted.names == ["car", "truck", "bus"]  # an untracked row keeps its label
    assert voted.scores.tolist() == original.scores.tolist()
    assert voted.track_ids.tolist() == original.track_ids.tolist()
    assert voted.masks == original.masks
    np.testing.assert_array_equal(voted.boxes, original.boxes)


def test_votes_of_removed_tracks_are_deleted():
    vote = LabelVote(30)
    for track_id in range(1000):
        vote.update(instances_with((track_id, CAR, 0.9)), np.array([track_id]))
    assert len(vote._ballots) == 1
    vote.update(instances_with(), np.array([], np.int64))
    assert vote == LabelVote(30)


observations = st.lists(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([CAR, TRUCK, BUS]), st.integers(1, 8)),
        max_size=4,
        unique_by=lambda row: row[0],
    ),
    max_size=12,
)


@given(observations, st.integers(1, 6))
def test_vote_equals_an_exact_count(frames: list[list[Row]], count: int):
    vote, history = LabelVote(count), {}
    for rows_in_eighths in frames:
        rows = [(track_id, label, eighths / 8) for track_id, label, eighths in rows_in_eighths]
        voted = vote.update(instances_with(*rows), np.arange(4))
        for (track_id, label, score), name in zip(rows, voted.names, strict=True):
            votes, previous = history.get(track_id, ([], None))
            votes = [*votes, (label, Fraction(score))][-count:]
            weights = Counter()
            for each, weight in votes:
                weights[each] += weight
            tied = [each for each in weights if weights[each] == max(weights.values())]
            latest = [each for each, _ in votes if each in tied][-1]
            label_chosen = previous if previous in tied else latest
            history[track_id] = votes, label_chosen
            assert name == NAMES[label_chosen]


@given(observations, st.integers(0, 12))
def test_pickled_copy_continues_like_the_original(frames: list[list[Row]], pickled_at: int):
    vote = LabelVote(4)
    for number, rows in enumerate(frames):
        if number == pickled_at:
            vote = pickle.loads(pickle.dumps(vote))
        vote.update(instances_with(*((t, label, s / 8) for t, label, s in rows)), np.arange(4))
    uninterrupted = LabelVote(4)
    for rows in frames:
        uninterrupted.update(
            instances_with(*((t, label, s / 8) for t, label, s in rows)), np.arange(4)
        )
    assert vote == uninterrupted


def results(labels: list[int], source: str = "gate", epochs: list[int] | None = None):
    """Yield results of one stationary object, detected with each of ``labels``."""
    for index, label in enumerate(labels):
        image = np.zeros((*SIZE, 3), np.uint8)
        epoch = epochs[index] if epochs else 0
        frame = Frame(source, index, epoch, index / 10, 0.0, 0.0, image)
        yield Result(frame, instances_with((-1, label, 0.8)), "test")


def names_and_ids(stream, **settings: object) -> tuple[list[str], set[int]]:
    tracked = list(track(stream, TrackerConfig(**settings), Metrics()))
    ids = {int(result.instances.track_ids[0]) for result in tracked}
    return [result.instances.names[0] for result in tracked], ids


def test_object_with_changing_labels_has_one_track_and_one_class():
    names, ids = names_and_ids(results([CAR, CAR, TRUCK, CAR, TRUCK, CAR]))
    assert names == ["car"] * 6
    assert ids == {1}


def test_without_a_vote_each_class_is_another_track():
    names, ids = names_and_ids(results([CAR, CAR, TRUCK, TRUCK, CAR]), class_vote=0)
    assert names == ["car", "car", "truck", "truck", "car"]
    assert len(ids - {-1}) == 2


def test_vote_restarts_with_a_new_epoch():
    labels, epochs = [CAR] * 5 + [TRUCK], [0] * 5 + [1]
    assert names_and_ids(results(labels, epochs=epochs))[0] == ["car"] * 5 + ["truck"]


def test_votes_of_sources_are_independent():
    gate, yard = results([CAR] * 4, "gate"), results([TRUCK] * 4, "yard")
    mixed = [result for pair in zip(gate, yard, strict=True) for result in pair]
    assert names_and_ids(mixed)[0] == ["car", "truck"] * 4
