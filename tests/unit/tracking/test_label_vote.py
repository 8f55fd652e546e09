"""The class of a track: a vote of its last observations, that changes nothing else."""

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
"""Track, label, score."""


def seen(*rows: Row) -> Instances:
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


def published(vote: LabelVote, *observations: tuple[int, float]) -> list[str]:
    """The names that track 1 is published under, one for each (label, score)."""
    known = np.array([1])
    return [vote.update(seen((1, *each)), known).names[0] for each in observations]


def test_the_label_with_the_most_weight_is_published():
    assert published(LabelVote(10), (CAR, 0.6), (TRUCK, 0.5), (CAR, 0.5), (TRUCK, 0.7)) == [
        "car",
        "car",
        "car",
        "truck",
    ]


def test_a_few_sure_observations_outweigh_many_weak_ones():
    assert published(LabelVote(10), *[(CAR, 0.25)] * 3, (TRUCK, 0.875))[-1] == "truck"


def test_only_the_last_observations_vote():
    names = published(LabelVote(3), *[(CAR, 0.9)] * 20, *[(TRUCK, 0.4)] * 3)
    assert names == ["car"] * 22 + ["truck"]


def test_of_equal_weights_the_label_that_was_published_stays():
    assert (
        published(LabelVote(10), (CAR, 0.5), (TRUCK, 0.5), (CAR, 0.5), (TRUCK, 0.5)) == ["car"] * 4
    )
    assert published(LabelVote(2), (CAR, 0.5), (TRUCK, 0.5), (BUS, 0.5)) == ["car", "car", "bus"]


def test_all_but_the_label_stays_and_the_input_is_not_written_to():
    vote = LabelVote(5)
    vote.update(seen((1, CAR, 0.9), (2, BUS, 0.8)), np.array([1, 2]))
    given = seen((1, TRUCK, 0.5), (-1, TRUCK, 0.9), (2, BUS, 0.7))
    out = vote.update(given, np.array([1, 2]))
    assert given.labels.tolist() == [TRUCK, TRUCK, BUS]
    assert out.names == ["car", "truck", "bus"]  # a row without an identity keeps its own
    assert out.scores.tolist() == given.scores.tolist()
    assert out.track_ids.tolist() == given.track_ids.tolist()
    assert out.masks == given.masks
    np.testing.assert_array_equal(out.boxes, given.boxes)


def test_tracks_that_are_gone_are_forgotten():
    vote = LabelVote(30)
    for track_id in range(1000):
        vote.update(seen((track_id, CAR, 0.9)), np.array([track_id]))
    assert len(vote._ballots) == 1
    vote.update(seen(), np.array([], np.int64))
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
def test_it_is_the_vote_that_counting_exactly_gives(frames: list[list[Row]], last: int):
    vote, history = LabelVote(last), {}
    for eighths in frames:
        rows = [(track_id, label, count / 8) for track_id, label, count in eighths]
        out = vote.update(seen(*rows), np.arange(4))
        for (track_id, label, score), name in zip(rows, out.names, strict=True):
            votes, before = history.get(track_id, ([], None))
            votes = [*votes, (label, Fraction(score))][-last:]
            weights = Counter()
            for each, weight in votes:
                weights[each] += weight
            tied = [each for each in weights if weights[each] == max(weights.values())]
            latest = [each for each, _ in votes if each in tied][-1]
            now = before if before in tied else latest
            history[track_id] = votes, now
            assert name == NAMES[now]


@given(observations, st.integers(0, 12))
def test_a_pickled_copy_goes_on_as_the_original(frames: list[list[Row]], cut: int):
    vote = LabelVote(4)
    for number, rows in enumerate(frames):
        if number == cut:
            vote = pickle.loads(pickle.dumps(vote))
        vote.update(seen(*((t, label, s / 8) for t, label, s in rows)), np.arange(4))
    whole = LabelVote(4)
    for rows in frames:
        whole.update(seen(*((t, label, s / 8) for t, label, s in rows)), np.arange(4))
    assert vote == whole


# The stage


def results(labels: list[int], source: str = "gate", epochs: list[int] | None = None):
    """A van that stands still, taken for each of ``labels``."""
    for index, label in enumerate(labels):
        image = np.zeros((*SIZE, 3), np.uint8)
        epoch = epochs[index] if epochs else 0
        frame = Frame(source, index, epoch, index / 10, 0.0, 0.0, image)
        yield Result(frame, seen((-1, label, 0.8)), "test")


def names_and_ids(stream, **settings: object) -> tuple[list[str], set[int]]:
    tracked = list(track(stream, TrackerConfig(**settings), Metrics()))
    ids = {int(result.instances.track_ids[0]) for result in tracked}
    return [result.instances.names[0] for result in tracked], ids


def test_one_object_has_one_identity_and_one_class_whatever_it_is_taken_for():
    names, ids = names_and_ids(results([CAR, CAR, TRUCK, CAR, TRUCK, CAR]))
    assert names == ["car"] * 6
    assert ids == {1}


def test_without_a_vote_each_class_is_an_object_of_its_own():
    names, ids = names_and_ids(results([CAR, CAR, TRUCK, TRUCK, CAR]), class_vote=0)
    assert names == ["car", "car", "truck", "truck", "car"]
    assert len(ids - {-1}) == 2


def test_a_new_epoch_starts_a_new_vote():
    labels, epochs = [CAR] * 5 + [TRUCK], [0] * 5 + [1]
    assert names_and_ids(results(labels, epochs=epochs))[0] == ["car"] * 5 + ["truck"]


def test_sources_vote_apart():
    gate, yard = results([CAR] * 4, "gate"), results([TRUCK] * 4, "yard")
    mixed = [result for pair in zip(gate, yard, strict=True) for result in pair]
    assert names_and_ids(mixed)[0] == ["car", "truck"] * 4
