"""Tracking metrics: hand-computed cases, comparison with trackeval's benchmarks, real tracks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from support.paths import SHARED

from streamseg.config.training import TrackingTask
from streamseg.errors import DataError, StreamsegError
from streamseg.evaluation import evaluate_tracks, read_tracks, tracking_metrics
from streamseg.evaluation.report import scores_to_dict
from streamseg.evaluation.tables import make_tracking_table
from streamseg.protocol.encoding import encode, instance_messages
from streamseg.protocol.messages import RecordedMessage
from streamseg.structures.masks import Masks
from streamseg.structures.results import Instances

SIZE = (60, 100)
CLASSES = {"car": 1, "pedestrian": 2}
KITTI = SHARED / "data" / "kitti_mots"
MOT15 = SHARED / "data" / "mot15"
PERFECT = ("hota", "deta", "assa", "idf1", "mota")

needs_kitti = pytest.mark.skipif(
    not KITTI.is_dir(), reason=f"{KITTI} is missing: it is not part of the project"
)
needs_mot15 = pytest.mark.skipif(
    not MOT15.is_dir(), reason=f"{MOT15} is missing: it is not part of the project"
)


def encode_box(x: int, y: int, width: int = 10, height: int = 10) -> str:
    return Masks.from_boxes([(x, y, x + width, y + height)], SIZE).counts[0]


def mots_line(frame: int, id_: int, label: int, *box: int) -> str:
    return f"{frame} {id_} {label} {SIZE[0]} {SIZE[1]} {encode_box(*box)}"


class FilePair:
    """Ground truth and predictions in two files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def score(
        self,
        truth: Iterable[str],
        results: Iterable[str],
        *,
        on: str = "masks",
        classes: dict[str, int] | None = None,
    ) -> tracking_metrics.TrackingScores:
        (self.folder / "truth.txt").write_text("\n".join(truth) + "\n")
        (self.folder / "results.txt").write_text("\n".join(results) + "\n")
        class_ids = CLASSES if classes is None else classes
        task = TrackingTask(truth="truth.txt", results="results.txt", overlap=on, classes=class_ids)
        return evaluate_tracks(task, self.folder)


@pytest.fixture
def file_pair(tmp_path: Path) -> FilePair:
    return FilePair(tmp_path)


def two_cars(frames: int, *, swapped_from: int = 99) -> list[str]:
    """Return MOTS lines of two parked cars, whose ids are swapped from a frame on."""
    return [
        mots_line(frame, (id_ + (frame >= swapped_from)) % 2, 1, 30 * id_, 20)
        for frame in range(frames)
        for id_ in (0, 1)
    ]


def test_swapped_ids(file_pair: FilePair):
    """Ten frames, two tracks, ids swapped halfway: two switches in twenty detections.

    Half of each track has the right id, so IDF1 is one half. Each pair of ids shares 5 of 15
    frames: association accuracy is one third, and HOTA its square root.
    """
    score = file_pair.score(two_cars(10), two_cars(10, swapped_from=5)).overall
    assert (score.switches, score.fragments, score.tracks, score.frames) == (2, 0, 2, 10)
    assert score.mota == pytest.approx(1 - 2 / 20)
    assert score.smota == pytest.approx(1 - 2 / 20)
    assert score.idf1 == pytest.approx(0.5)
    assert score.deta == pytest.approx(1)
    assert score.assa == pytest.approx(1 / 3)
    assert score.hota == pytest.approx(np.sqrt(1 / 3))


def test_miss_and_false_positive(file_pair: FilePair):
    """One car in four frames, detected in three; in the other frame a false positive."""
    truth = [mots_line(frame, 5, 1, 10, 10) for frame in range(4)]
    predicted = [mots_line(frame, 8, 1, 10, 10) for frame in (0, 2, 3)] + [
        mots_line(1, 9, 1, 60, 40)
    ]
    score = file_pair.score(truth, predicted).overall
    assert (score.switches, score.fragments) == (0, 1)
    assert score.mota == pytest.approx((3 - 1) / 4)
    assert score.idf1 == pytest.approx(3 / (3 + 0.5 + 0.5))


def test_smota_weights_matches_by_iou(file_pair: FilePair):
    """Masks shifted by a tenth: 90 of 110 pixels are shared."""
    score = file_pair.score([mots_line(0, 5, 1, 10, 10)], [mots_line(0, 8, 1, 11, 10)]).overall
    assert score.mota == 1
    assert score.smota == pytest.approx(90 / 110)
    assert file_pair.score(
        [mots_line(0, 5, 1, 10, 10)], [mots_line(0, 8, 1, 11, 10)], on="boxes"
    ).overall == (
        tracking_metrics.TrackScore(
            hota=score.hota,
            deta=score.deta,
            assa=score.assa,
            idf1=1,
            mota=1,
            smota=None,
            switches=0,
            fragments=0,
            frames=1,
            tracks=1,
        )
    )


def test_classes_are_scored_separately_and_together(file_pair: FilePair):
    truth = [mots_line(0, 1, 1, 0, 0), mots_line(1, 1, 1, 0, 0), mots_line(0, 2, 2, 40, 40)]
    predicted = [mots_line(0, 1, 1, 0, 0), mots_line(1, 1, 1, 0, 0), mots_line(0, 2, 1, 40, 40)]
    scores = file_pair.score(truth, predicted)
    assert list(scores.classes) == ["car", "pedestrian"]
    assert scores.classes["car"].mota == pytest.approx((2 - 1) / 2)
    assert scores.classes["pedestrian"].mota == 0
    assert scores.overall.mota == pytest.approx((2 - 1) / 3)
    assert scores.overall.tracks == 2
    single_class = file_pair.score(truth, predicted, classes={})
    assert list(single_class.classes) == ["all"]
    assert single_class.overall.mota == 1


@pytest.mark.parametrize("on", ["masks", "boxes"])
def test_prediction_mostly_in_an_unannotated_region_is_ignored(file_pair: FilePair, on: str):
    region = mots_line(0, 10000, 10, 50, 0, 50, 60)
    truth = [mots_line(0, 1, 1, 10, 10), mots_line(0, 2, 1, 50, 40), region]
    inside, mostly, half = (mots_line(0, 8, 1, x, 20) for x in (70, 46, 45))
    matches = [mots_line(0, 1, 1, 10, 10), mots_line(0, 2, 1, 50, 40)]
    for prediction, wrong in ((inside, 0), (mostly, 0), (half, 1)):
        score = file_pair.score(truth, [*matches, prediction], on=on).overall
        assert score.mota == pytest.approx((2 - wrong) / 2)
    assert file_pair.score(truth[:2], [*matches, inside], on=on).overall.mota == pytest.approx(0.5)


def test_region_in_the_predictions_is_not_a_track(file_pair: FilePair):
    truth = [mots_line(0, 1, 1, 10, 10)]
    assert file_pair.score(truth, [*truth, mots_line(0, 10000, 10, 50, 0)]).overall.mota == 1


def mot_line(frame: int, id_: int, x: float, conf: float = 1, label: float = -1) -> str:
    return f"{frame},{id_},{x},5.5,10,20,{conf},{label},-1,-1"


def test_mot_text_counts_frames_from_one(file_pair: FilePair):
    text = [mot_line(frame, 3, 7.5 * frame) for frame in (1, 2, 4)]
    score = file_pair.score(text, text, on="boxes", classes={}).overall
    assert [getattr(score, name) for name in PERFECT] == pytest.approx([1] * 5)
    assert (score.smota, score.frames) == (None, 4)
    tracks = read_tracks(file_pair.folder / "truth.txt", {})
    assert sorted(tracks.frames) == [0, 1, 3]
    assert tracks[0].boxes.tolist() == [[7.5, 5.5, 17.5, 25.5]]
    assert len(tracks[2].ids) == 0


BOXES = [[frame, 1 + frame % 2, 100 + 5 * frame, 100, 40.5, 80] for frame in range(1, 6)]


def make_mot_text(*extra: float, separator: str = ",", head: str = "", end: str = "") -> str:
    """Return ``BOXES`` as MOT text with extra columns."""
    rows = (separator.join(map(str, [*row, *extra])) + end for row in BOXES)
    return head + "\n".join(rows) + "\n"


PLAIN_MOT = make_mot_text(1, 1, 1)
MOT_VARIANTS = {
    "no class": make_mot_text(1, -1, -1, -1),
    "world coordinates": make_mot_text(1, -7.53, 3.2, 0),
    "whole world coordinates": make_mot_text(1, 12, 5, 0),
    "class and visibility": make_mot_text(1, 1, 0.73),
    "class and -1": make_mot_text(0.9, 1, -1, -1),
    "six columns": make_mot_text(),
    "seven columns": make_mot_text(0.5),
    "spaces": make_mot_text(1, -1, -1, -1, separator=" "),
    "six columns between spaces": make_mot_text(separator=" "),
    "tabs": make_mot_text(1, -1, -1, -1, separator="\t"),
    "commas and spaces": make_mot_text(1, -1, -1, -1, separator=", "),
    "semicolons": make_mot_text(1, -1, -1, -1, separator=";"),
    "commas at the end": make_mot_text(1, -1, -1, end=",,"),
    "a header": make_mot_text(1, head="frame,id,bb_left,bb_top,bb_width,bb_height,conf\n"),
    "a header between spaces": make_mot_text(separator=" ", head="Frame Track_ID x1 y1 w h\n"),
    "a comment": make_mot_text(1, head="# written by a tool, 2 tracks\n"),
    "a byte order mark": make_mot_text(1, head="\ufeff"),
    "Windows' line ends": make_mot_text(1).replace("\n", "\r\n"),
    "numbers with a point": "".join(
        ",".join(map(str, map(float, row))) + ",1.0,1.0,1.0\n" for row in BOXES
    ),
    "numbers with an exponent": make_mot_text(1).replace(",100,", ",1.0e+02,"),
}


@pytest.mark.parametrize("kind", MOT_VARIANTS)
def test_variants_of_mot_text(tmp_path: Path, kind: str):
    (tmp_path / "t.txt").write_text(PLAIN_MOT)
    (tmp_path / "r.txt").write_bytes(MOT_VARIANTS[kind].encode())
    expected, predicted = (
        read_tracks(tmp_path / name, {"person": 1}) for name in ("t.txt", "r.txt")
    )
    assert list(predicted.frames) == list(expected.frames)
    for number, frame in expected.frames.items():
        assert (predicted[number].ids == frame.ids).all()
        assert (predicted[number].labels == 1).all()
        assert (predicted[number].boxes == frame.boxes).all()
        assert predicted[number].counted.all()


def test_header_with_another_column_order_is_rejected(file_pair: FilePair):
    head = "id,frame,bb_left,bb_top,bb_width,bb_height\n"
    with pytest.raises(DataError, match=r"line 1: the header must be frame,id,left,top,width"):
        file_pair.score(
            PLAIN_MOT.split("\n"), make_mot_text(head=head).split("\n"), on="boxes", classes={}
        )


def test_rle_that_looks_like_a_number_is_read_as_rle(tmp_path: Path):
    (tmp_path / "t.txt").write_text("0 1 1 1 4 22\n1 1 1 1 4 22\n")
    predicted = read_tracks(tmp_path / "t.txt", {})
    assert predicted.size == (1, 4)
    assert list(predicted.frames) == [0, 1]


def test_mot_rows_with_zero_confidence_are_not_counted(file_pair: FilePair):
    """A true row marked 0 may be missed, but matching it is wrong; id -1 is not a track."""
    truth = [mot_line(1, 1, 0), mot_line(1, 2, 50, conf=0)]
    assert file_pair.score(truth, [mot_line(1, 7, 0)], on="boxes", classes={}).overall.mota == 1
    predictions = [mot_line(1, 7, 0), mot_line(1, 8, 50), mot_line(1, -1, 30), mot_line(1, -1, 60)]
    assert file_pair.score(truth, predictions, on="boxes", classes={}).overall.mota == 0


def test_predictions_that_match_mot_distractors_are_ignored(file_pair: FilePair):
    truth = [
        mot_line(1, 1, 0, label=1),
        mot_line(1, 2, 50, conf=0, label=8),
        mot_line(1, 3, 90, 0, label=3),
    ]
    predicted = [mot_line(1, 7, 0), mot_line(1, 8, 50), mot_line(1, 9, 90)]
    class_ids = {"pedestrian": 1}
    assert file_pair.score(truth, predicted[:2], on="boxes", classes=class_ids).overall.mota == 1
    assert file_pair.score(truth, predicted, on="boxes", classes=class_ids).overall.mota == 0


def results_line(frame: int, instances: Instances, *, epoch: int = 0, source: str = "gate") -> str:
    message = RecordedMessage(
        v=1,
        source=source,
        epoch=epoch,
        seq=frame,
        frame=frame,
        item=None,
        pts=frame / 10,
        size=instances.size,
        model="nanomask",
        instances=instance_messages(instances),
    )
    return encode(message).decode()


def make_instance(id_: int, name: str = "car", x: int = 10) -> Instances:
    masks = Masks.from_boxes([(x, 10, x + 10, 20)], SIZE)
    return Instances(masks.boxes, [0.9], [77], masks, {77: name}, [id_])


def test_rle_may_contain_separators_of_mot_text(file_pair: FilePair):
    truth = [mots_line(frame, 5, 1, 1, 0, 2, 11) for frame in range(3)]
    assert ";" in truth[0]
    assert file_pair.score(truth, truth).overall.hota == pytest.approx(1)


def test_results_jsonl_is_scored_by_class_name(file_pair: FilePair):
    """Category ids of the model are ignored."""
    truth = [mots_line(frame, 5, 1, 10, 10) for frame in range(3)]
    predicted = [results_line(frame, make_instance(4)) for frame in range(3)]
    score = file_pair.score(truth, predicted, classes={"car": 1}).overall
    assert [getattr(score, name) for name in (*PERFECT, "smota")] == pytest.approx([1] * 6)
    assert file_pair.score(predicted, predicted).overall.hota == pytest.approx(1)
    untracked = file_pair.score(truth, [*predicted[:2], results_line(2, make_instance(-1))]).overall
    assert untracked.mota == pytest.approx(2 / 3)


def test_track_ids_of_two_epochs_are_different_tracks(file_pair: FilePair):
    truth = [mots_line(frame, 5, 1, 10, 10) for frame in range(4)]
    predicted = [results_line(frame, make_instance(0), epoch=frame // 2) for frame in range(4)]
    score = file_pair.score(truth, predicted).overall
    assert (score.switches, score.idf1) == (1, pytest.approx(0.5))


def test_frame_numbers_may_be_large(file_pair: FilePair):
    text = [mot_line(1, 3, 0), mot_line(10**12, 3, 0)]
    score = file_pair.score(text, text, on="boxes", classes={}).overall
    assert (score.mota, score.frames) == (1, 10**12)


def test_byte_order_mark_is_skipped(file_pair: FilePair):
    text = ["\ufeff" + mot_line(1, 3, 0)]
    assert file_pair.score(text, text, on="boxes", classes={}).overall.mota == 1


def test_empty_predictions_score_zero(file_pair: FilePair):
    score = file_pair.score([mots_line(0, 5, 1, 10, 10)], [""]).overall
    assert (score.hota, score.mota, score.idf1, score.tracks) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        (["0 1 1 60 100"], {}, r"results.txt: line 1: isn't MOTS text: frame id class height"),
        ([mots_line(0, 1, 1, 0, 0), "0 x 1 60 100 a"], {}, "line 2: 'x' isn't a number"),
        (["0 1.5 1 60 100 a"], {}, r"line 1: '1.5' isn't an integer"),
        (["0 1e300 1 60 100 a"], {}, "line 1: '1e300' isn't an integer"),
        (["-1 1 1 60 100 a"], {}, "line 1: frame -1, but frames are counted from 0"),
        ([mots_line(0, 1, 1, 0, 0)[:-2]], {}, "line 1: run lengths"),
        (
            ["", mots_line(0, 1, 1, 0, 0), mots_line(0, 1, 2, 9, 9)],
            {},
            "line 3: id 1 is in frame 0 twice",
        ),
        (
            [
                mots_line(0, 1, 1, 0, 0),
                f"1 1 1 70 100 {Masks.from_boxes([(0, 0, 5, 5)], (70, 100)).counts[0]}",
            ],
            {},
            r"line 2: the frame is \(70, 100\), the first was \(60, 100\)",
        ),
        (
            [f"1 1 1 70 100 {Masks.from_boxes([(0, 0, 5, 5)], (70, 100)).counts[0]}"],
            {},
            r"results.txt: its frames are \(70, 100\), those of .*truth.txt are \(60, 100\)",
        ),
        (
            [mot_line(1, 1, 0)],
            {"classes": {"car": 1}},
            "results.txt: has only boxes: set overlap: boxes",
        ),
        ([mot_line(1, 1, 0)], {"on": "boxes"}, "line 1: has no class in the eighth column"),
        ([mot_line(0, 1, 0)], {"classes": {}}, "line 1: frame 0, but frames are counted from 1"),
        (["1,2,3"], {"classes": {}}, "line 1: isn't MOT text"),
        (["1,1,nan,5,5,5"], {"classes": {}}, "line 1: 'nan' isn't a finite number"),
        ([mots_line(0, 1, 3, 0, 0)], {}, "results.txt: has no track of car, pedestrian: it has 3"),
        (
            [results_line(0, make_instance(1, "auto"))],
            {},
            "has no track of car, pedestrian: it has auto",
        ),
        ([results_line(0, make_instance(1)), '{"v": 1'], {}, "line 2: not a RecordedMessage"),
        ([results_line(0, make_instance(1))] * 2, {}, "line 2: frame 0 is in the file twice"),
        (
            [results_line(0, make_instance(1)), results_line(1, make_instance(1), source="yard")],
            {},
            "line 2: the source is yard, before it was gate",
        ),
    ],
)
def test_invalid_predictions_are_an_error(
    file_pair: FilePair, results: list[str], options: dict, message: str
):
    with pytest.raises(DataError, match=message) as error:
        file_pair.score([mots_line(0, 1, 1, 0, 0)], results, **options)
    assert "\n" not in str(error.value)


def test_invalid_ground_truth_is_an_error(file_pair: FilePair):
    with pytest.raises(DataError, match=r"truth.txt: has no track of car, pedestrian: it has no"):
        file_pair.score([""], [mots_line(0, 1, 1, 0, 0)])
    with pytest.raises(DataError, match=r"truth.txt: has no track of bus: it has 1"):
        file_pair.score([mots_line(0, 1, 1, 0, 0)], [""], classes={"bus": 3})
    with pytest.raises(DataError, match="nowhere: can't be read: No such file"):
        evaluate_tracks(TrackingTask(truth="nowhere", results="nowhere"), file_pair.folder)


def test_missing_trackeval_is_an_error(file_pair: FilePair, monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="trackeval")

    monkeypatch.setattr(tracking_metrics, "import_module", missing)
    with pytest.raises(StreamsegError, match="pip install --no-deps trackeval") as error:
        file_pair.score(two_cars(1), two_cars(1))
    assert "\n" not in str(error.value)


def test_tracking_table_and_json(file_pair: FilePair):
    scores = file_pair.score([*two_cars(2), mots_line(0, 7, 2, 70, 40)], two_cars(2))
    table = make_tracking_table(scores)
    assert [row[0] for row in table.rows] == ["car", "pedestrian", "all classes"]
    assert table.rows[0] == ("car", *["100.0"] * 6, "0", "0", "2")
    assert {len(row) for row in table.rows} == {len(table.columns)}
    decoded = json.loads(json.dumps(scores_to_dict(scores), allow_nan=False))
    assert decoded["overall"]["tracks"] == 3
    assert decoded["classes"]["car"]["hota"] == scores.classes["car"].hota
    boxes_table = make_tracking_table(
        file_pair.score(two_cars(2), two_cars(2), on="boxes", classes={"car": 1})
    )
    assert [len(row) for row in boxes_table.rows] == [9]


def make_noisy_mots(truth: Path, seed: int) -> list[str]:
    """Return ground truth with some masks dropped, moved, given another id, or added."""
    random = np.random.default_rng(seed)
    rows = []
    for line in truth.read_text().splitlines():
        frame, id_, label, height, width, text = line.split()
        if random.random() < 0.15:
            continue
        size = int(height), int(width)
        mask = Masks.from_rle([text], size)
        moved = mask.windows[:, :2] + random.integers(-2, 3, 2)
        extent = np.array(mask.crops[0].shape[::-1])
        moved = np.clip(moved, 0, np.array(size[::-1]) - extent)
        mask = Masks.from_crops(mask.crops, moved, size)
        if label == "10":  # a prediction in a region that is not annotated
            id_, label = f"{9000 + random.integers(3)}{frame}", "1"
        elif random.random() < 0.05:
            id_ = f"{int(id_) + 500}"
        rows.append(f"{frame} {id_} {label} {height} {width} {mask.counts[0]}")
    return _remove_overlaps(rows)


def _remove_overlaps(rows: list[str]) -> list[str]:
    """Give each pixel to the first mask, because trackeval's readers reject overlaps."""
    used: dict[str, np.ndarray] = {}
    kept = []
    for row in rows:
        frame, id_, label, height, width, text = row.split()
        bitmap = Masks.from_rle([text], (int(height), int(width))).to_arrays()
        free = bitmap & ~used.setdefault(frame, np.zeros_like(bitmap))
        used[frame] |= free
        if free.any():
            counts = Masks.from_arrays(free).counts[0]
            kept.append(f"{frame} {id_} {label} {height} {width} {counts}")
    return kept


@pytest.mark.slow
@needs_kitti
@pytest.mark.parametrize("name", ["0002", "0016"])
def test_scores_match_trackeval_on_kitti_mots(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    import trackeval

    truth = KITTI / f"{name}.txt"
    results = tmp_path / "trackers" / "ours" / "data" / f"{name}.txt"
    results.parent.mkdir(parents=True)
    results.write_text("\n".join(make_noisy_mots(truth, seed=int(name))) + "\n")
    frames = read_tracks(truth, CLASSES).length
    dataset = trackeval.datasets.KittiMOTS(
        {
            "GT_FOLDER": str(KITTI),
            "GT_LOC_FORMAT": "{gt_folder}/{seq}.txt",
            "TRACKERS_FOLDER": str(tmp_path / "trackers"),
            "SEQ_INFO": {name: frames},
            "PRINT_CONFIG": False,
        }
    )
    raw = dataset.get_raw_seq_data("ours", name)
    scores = evaluate_tracks(
        TrackingTask(truth=str(truth), results=str(results), classes=CLASSES), tmp_path
    )
    for class_ in CLASSES:
        data = dataset.get_preprocessed_seq_data(raw, class_)
        clear = trackeval.metrics.CLEAR({"PRINT_CONFIG": False}).eval_sequence(data)
        hota = trackeval.metrics.HOTA().eval_sequence(data)
        identity = trackeval.metrics.Identity({"PRINT_CONFIG": False}).eval_sequence(data)
        actual = scores.classes[class_]
        assert actual.mota == pytest.approx(float(clear["MOTA"]), abs=1e-9)
        assert actual.smota == pytest.approx(float(clear["sMOTA"]), abs=1e-9)
        assert actual.switches == clear["IDSW"] > 0
        assert actual.hota == pytest.approx(float(np.mean(hota["HOTA"])), abs=1e-9)
        assert actual.idf1 == pytest.approx(float(identity["IDF1"]), abs=1e-9)
        assert 0.2 < actual.hota < 0.95
    capsys.readouterr()


@pytest.mark.parametrize("benchmark", ["MOT15", "MOT17"])
def test_scores_match_trackeval_on_mot(
    tmp_path: Path, benchmark: str, capsys: pytest.CaptureFixture[str]
):
    import trackeval

    random = np.random.default_rng(4)
    truth, predicted = [], []
    for frame in range(1, 40):
        for id_ in range(12):
            x, y = 40 * id_ + frame, 10 * (id_ % 3)
            label = [1, 1, 1, 1, 1, 2, 3, 7, 8, 12, 1, 1][id_] if benchmark == "MOT17" else -1
            conf = int(label in (1, -1) and id_ != 11)
            truth.append(f"{frame},{id_ + 1},{x},{y},30,60,{conf},{label},1.0")
            if random.random() < 0.8:
                dx, dy = random.normal(0, 4, 2)
                track = id_ + 1 + 50 * (random.random() < 0.1)
                predicted.append(f"{frame},{track},{x + dx:.2f},{y + dy:.2f},30,60,0.9,-1,-1,-1")
    (tmp_path / "gt" / "S" / "gt").mkdir(parents=True)
    (tmp_path / "gt" / "S" / "gt" / "gt.txt").write_text("\n".join(truth) + "\n")
    (tmp_path / "trackers" / "ours" / "data").mkdir(parents=True)
    (tmp_path / "trackers" / "ours" / "data" / "S.txt").write_text("\n".join(predicted) + "\n")
    dataset = trackeval.datasets.MotChallenge2DBox(
        {
            "GT_FOLDER": str(tmp_path / "gt"),
            "TRACKERS_FOLDER": str(tmp_path / "trackers"),
            "BENCHMARK": benchmark,
            "SEQ_INFO": {"S": 39},
            "SKIP_SPLIT_FOL": True,
            "PRINT_CONFIG": False,
        }
    )
    data = dataset.get_preprocessed_seq_data(dataset.get_raw_seq_data("ours", "S"), "pedestrian")
    clear = trackeval.metrics.CLEAR({"PRINT_CONFIG": False}).eval_sequence(data)
    hota = trackeval.metrics.HOTA().eval_sequence(data)
    task = TrackingTask(
        truth="gt/S/gt/gt.txt",
        results="trackers/ours/data/S.txt",
        overlap="boxes",
        classes={"pedestrian": 1} if benchmark == "MOT17" else {},
    )
    actual = evaluate_tracks(task, tmp_path).overall
    assert actual.mota == pytest.approx(float(clear["MOTA"]), abs=1e-9)
    assert actual.switches == clear["IDSW"]
    assert actual.fragments == clear["Frag"]
    assert actual.hota == pytest.approx(float(np.mean(hota["HOTA"])), abs=1e-9)
    assert 0.1 < actual.hota < 0.95
    capsys.readouterr()


@needs_kitti
@pytest.mark.parametrize("on", ["masks", "boxes"])
def test_kitti_ground_truth_as_prediction_is_perfect(on: str):
    task = TrackingTask(truth="0016.txt", results="0016.txt", overlap=on, classes=CLASSES)
    scores = evaluate_tracks(task, KITTI)
    assert (scores.name, scores.overall.frames) == ("0016", 209)
    names = (*PERFECT, "smota") if on == "masks" else PERFECT
    for score in (*scores.classes.values(), scores.overall):
        assert [getattr(score, name) for name in names] == pytest.approx([1] * len(names))
        assert score.switches == 0


def swap_ids(lines: list[str], from_frame: int) -> list[str]:
    """Swap the ids of the two longest tracks from a frame on."""
    by_id = [line.split()[1] for line in lines if line.split()[2] == "2"]
    first, second = sorted(set(by_id), key=by_id.count)[-2:]
    other = {first: second, second: first}
    changed = []
    for line in lines:
        frame, id_, *rest = line.split()
        new = other.get(id_, id_) if int(frame) >= from_frame else id_
        changed.append(" ".join([frame, new, *rest]))
    return changed


@pytest.mark.slow
@needs_kitti
def test_swapped_ids_lower_the_kitti_scores(file_pair: FilePair):
    lines = (KITTI / "0016.txt").read_text().splitlines()
    perfect = file_pair.score(lines, lines).classes["pedestrian"]
    score = file_pair.score(lines, swap_ids(lines, 100)).classes["pedestrian"]
    assert 1 <= score.switches <= 2
    assert score.hota < perfect.hota - 0.01
    assert score.idf1 < perfect.idf1 - 0.01
    assert score.mota == pytest.approx(
        1 - score.switches / sum(" 2 " in i[:12] for i in lines), abs=1e-3
    )


@pytest.mark.slow
@needs_kitti
def test_results_jsonl_scores_match_mots_text(file_pair: FilePair, tmp_path: Path):
    lines = make_noisy_mots(KITTI / "0016.txt", seed=3)
    truth = (KITTI / "0016.txt").read_text().splitlines()
    expected = file_pair.score(truth, lines)
    names = {number: name for name, number in CLASSES.items()}
    tracks = read_tracks(tmp_path / "results.txt", CLASSES)
    recorded = []
    for number, frame in sorted(tracks.frames.items()):
        kept = np.flatnonzero(np.isin(frame.labels, list(names)))
        masks = frame.masks[kept]
        recorded.append(
            results_line(
                number,
                Instances(
                    masks.boxes,
                    np.ones(len(kept)),
                    frame.labels[kept],
                    masks,
                    names,
                    frame.ids[kept],
                ),
            )
        )
    actual = file_pair.score(truth, recorded)
    for name in CLASSES:  # the ids differ, and with them the order of sums
        assert asdict(actual.classes[name]) == pytest.approx(
            asdict(expected.classes[name]), abs=1e-9
        )
    assert 0.2 < actual.overall.hota < 0.95


@needs_mot15
def test_mot15_ground_truth_as_prediction_is_perfect():
    for scene in ("TUD-Campus", "TUD-Stadtmitte"):
        task = TrackingTask(
            truth=f"{scene}/gt/gt.txt", results=f"{scene}/gt/gt.txt", overlap="boxes", name=scene
        )
        scores = evaluate_tracks(task, MOT15)
        assert scores.name == scene
        assert [getattr(scores.overall, name) for name in PERFECT] == pytest.approx([1] * 5)
        assert scores.overall.switches == 0
