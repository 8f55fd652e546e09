"""Tracking scores: by hand, beside trackeval's own readers of benchmarks, and on real tracks."""

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
from streamseg.protocol.messages import RecordedMessage, encode, instance_messages
from streamseg.structures.masks import Masks
from streamseg.structures.results import Instances

SIZE = (60, 100)
CLASSES = {"car": 1, "pedestrian": 2}
KITTI = SHARED / "data" / "kitti_mots"
MOT15 = SHARED / "data" / "mot15"
PERFECT = ("hota", "deta", "assa", "idf1", "mota")

needs_kitti = pytest.mark.skipif(not KITTI.is_dir(), reason=f"{KITTI} isn't there (not ours)")
needs_mot15 = pytest.mark.skipif(not MOT15.is_dir(), reason=f"{MOT15} isn't there (not ours)")


def counts(x: int, y: int, width: int = 10, height: int = 10) -> str:
    return Masks.from_boxes([(x, y, x + width, y + height)], SIZE).counts[0]


def mots(frame: int, id_: int, label: int, *box: int) -> str:
    return f"{frame} {id_} {label} {SIZE[0]} {SIZE[1]} {counts(*box)}"


class Pair:
    """A truth and results to be compared."""

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
        named = CLASSES if classes is None else classes
        task = TrackingTask(truth="truth.txt", results="results.txt", overlap=on, classes=named)
        return evaluate_tracks(task, self.folder)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def two_cars(frames: int, *, swapped_from: int = 99) -> list[str]:
    """Two cars that stand still; from a frame on, each has the other's id."""
    return [
        mots(frame, (id_ + (frame >= swapped_from)) % 2, 1, 30 * id_, 20)
        for frame in range(frames)
        for id_ in (0, 1)
    ]


def test_ids_that_are_swapped(pair: Pair):
    """Ten frames, two tracks, swapped in the middle: two switches in twenty objects.

    Half of each track has the right id, IDF1 is one half. Every pair of ids shares 5 frames of 15:
    the association accuracy is a third, and HOTA its square root.
    """
    score = pair.score(two_cars(10), two_cars(10, swapped_from=5)).overall
    assert (score.switches, score.fragments, score.tracks, score.frames) == (2, 0, 2, 10)
    assert score.mota == pytest.approx(1 - 2 / 20)
    assert score.smota == pytest.approx(1 - 2 / 20)
    assert score.idf1 == pytest.approx(0.5)
    assert score.deta == pytest.approx(1)
    assert score.assa == pytest.approx(1 / 3)
    assert score.hota == pytest.approx(np.sqrt(1 / 3))


def test_what_is_missed_and_what_is_wrong(pair: Pair):
    """Four frames of one car: seen, missed, seen, seen; when missed, another where nothing is."""
    truth = [mots(frame, 5, 1, 10, 10) for frame in range(4)]
    found = [mots(frame, 8, 1, 10, 10) for frame in (0, 2, 3)] + [mots(1, 9, 1, 60, 40)]
    score = pair.score(truth, found).overall
    assert (score.switches, score.fragments) == (0, 1)
    assert score.mota == pytest.approx((3 - 1) / 4)
    assert score.idf1 == pytest.approx(3 / (3 + 0.5 + 0.5))


def test_smota_weighs_overlap(pair: Pair):
    """Masks shifted by a tenth: 90 of 110 pixels are shared."""
    score = pair.score([mots(0, 5, 1, 10, 10)], [mots(0, 8, 1, 11, 10)]).overall
    assert score.mota == 1
    assert score.smota == pytest.approx(90 / 110)
    assert pair.score([mots(0, 5, 1, 10, 10)], [mots(0, 8, 1, 11, 10)], on="boxes").overall == (
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


def test_classes_are_scored_one_by_one_and_together(pair: Pair):
    truth = [mots(0, 1, 1, 0, 0), mots(1, 1, 1, 0, 0), mots(0, 2, 2, 40, 40)]
    found = [mots(0, 1, 1, 0, 0), mots(1, 1, 1, 0, 0), mots(0, 2, 1, 40, 40)]
    scores = pair.score(truth, found)
    assert list(scores.classes) == ["car", "pedestrian"]
    assert scores.classes["car"].mota == pytest.approx((2 - 1) / 2)
    assert scores.classes["pedestrian"].mota == 0
    assert scores.overall.mota == pytest.approx((2 - 1) / 3)
    assert scores.overall.tracks == 2
    together = pair.score(truth, found, classes={})
    assert list(together.classes) == ["all"]
    assert together.overall.mota == 1


@pytest.mark.parametrize("on", ["masks", "boxes"])
def test_what_is_mostly_in_a_region_that_is_not_annotated(pair: Pair, on: str):
    region = mots(0, 10000, 10, 50, 0, 50, 60)
    truth = [mots(0, 1, 1, 10, 10), mots(0, 2, 1, 50, 40), region]
    inside, mostly, half = (mots(0, 8, 1, x, 20) for x in (70, 46, 45))
    seen = [mots(0, 1, 1, 10, 10), mots(0, 2, 1, 50, 40)]
    for found, wrong in ((inside, 0), (mostly, 0), (half, 1)):
        score = pair.score(truth, [*seen, found], on=on).overall
        assert score.mota == pytest.approx((2 - wrong) / 2)
    assert pair.score(truth[:2], [*seen, inside], on=on).overall.mota == pytest.approx(0.5)


def test_a_region_in_the_results_is_no_track(pair: Pair):
    truth = [mots(0, 1, 1, 10, 10)]
    assert pair.score(truth, [*truth, mots(0, 10000, 10, 50, 0)]).overall.mota == 1


def box(frame: int, id_: int, x: float, conf: float = 1, label: float = -1) -> str:
    return f"{frame},{id_},{x},5.5,10,20,{conf},{label},-1,-1"


def test_mot_text_counts_from_one(pair: Pair):
    text = [box(frame, 3, 7.5 * frame) for frame in (1, 2, 4)]
    score = pair.score(text, text, on="boxes", classes={}).overall
    assert [getattr(score, name) for name in PERFECT] == pytest.approx([1] * 5)
    assert (score.smota, score.frames) == (None, 4)
    tracks = read_tracks(pair.folder / "truth.txt", {})
    assert sorted(tracks.frames) == [0, 1, 3]
    assert tracks[0].boxes.tolist() == [[7.5, 5.5, 17.5, 25.5]]
    assert len(tracks[2].ids) == 0


BOXES = [[frame, 1 + frame % 2, 100 + 5 * frame, 100, 40.5, 80] for frame in range(1, 6)]


def mot_lines(*last: float, between: str = ",", head: str = "", end: str = "") -> str:
    """The same boxes as MOT text, with other columns behind them."""
    rows = (between.join(map(str, [*row, *last])) + end for row in BOXES)
    return head + "\n".join(rows) + "\n"


PLAIN_MOT = mot_lines(1, 1, 1)
AS_WRITTEN = {
    "no class": mot_lines(1, -1, -1, -1),
    "world coordinates": mot_lines(1, -7.53, 3.2, 0),
    "whole world coordinates": mot_lines(1, 12, 5, 0),
    "class and visibility": mot_lines(1, 1, 0.73),
    "class and -1": mot_lines(0.9, 1, -1, -1),
    "six columns": mot_lines(),
    "seven columns": mot_lines(0.5),
    "spaces": mot_lines(1, -1, -1, -1, between=" "),
    "six columns between spaces": mot_lines(between=" "),
    "tabs": mot_lines(1, -1, -1, -1, between="\t"),
    "commas and spaces": mot_lines(1, -1, -1, -1, between=", "),
    "semicolons": mot_lines(1, -1, -1, -1, between=";"),
    "commas at the end": mot_lines(1, -1, -1, end=",,"),
    "a header": mot_lines(1, head="frame,id,bb_left,bb_top,bb_width,bb_height,conf\n"),
    "a header between spaces": mot_lines(between=" ", head="Frame Track_ID x1 y1 w h\n"),
    "a comment": mot_lines(1, head="# made by a tool, 2 tracks\n"),
    "a byte order mark": mot_lines(1, head="\ufeff"),
    "Windows' line ends": mot_lines(1).replace("\n", "\r\n"),
    "numbers with a point": "".join(
        ",".join(map(str, map(float, row))) + ",1.0,1.0,1.0\n" for row in BOXES
    ),
    "numbers with an exponent": mot_lines(1).replace(",100,", ",1.0e+02,"),
}


@pytest.mark.parametrize("kind", AS_WRITTEN)
def test_mot_text_as_tools_write_it(tmp_path: Path, kind: str):
    (tmp_path / "t.txt").write_text(PLAIN_MOT)
    (tmp_path / "r.txt").write_bytes(AS_WRITTEN[kind].encode())
    expected, found = (read_tracks(tmp_path / name, {"person": 1}) for name in ("t.txt", "r.txt"))
    assert list(found.frames) == list(expected.frames)
    for number, frame in expected.frames.items():
        assert (found[number].ids == frame.ids).all()
        assert (found[number].labels == 1).all()
        assert (found[number].boxes == frame.boxes).all()
        assert found[number].counted.all()


def test_a_header_of_another_order_is_refused(pair: Pair):
    head = "id,frame,bb_left,bb_top,bb_width,bb_height\n"
    with pytest.raises(DataError, match=r"line 1: the header must be frame,id,left,top,width"):
        pair.score(PLAIN_MOT.split("\n"), mot_lines(head=head).split("\n"), on="boxes", classes={})


def test_run_lengths_that_look_like_a_number_are_run_lengths(tmp_path: Path):
    (tmp_path / "t.txt").write_text("0 1 1 1 4 22\n1 1 1 1 4 22\n")
    found = read_tracks(tmp_path / "t.txt", {})
    assert found.size == (1, 4)
    assert list(found.frames) == [0, 1]


def test_mot_rows_that_do_not_count(pair: Pair):
    """Marked with 0 in the truth: needn't be found, but isn't excused. No id: not tracked."""
    truth = [box(1, 1, 0), box(1, 2, 50, conf=0)]
    assert pair.score(truth, [box(1, 7, 0)], on="boxes", classes={}).overall.mota == 1
    both = [box(1, 7, 0), box(1, 8, 50), box(1, -1, 30), box(1, -1, 60)]
    assert pair.score(truth, both, on="boxes", classes={}).overall.mota == 0


def test_mot_distractors(pair: Pair):
    truth = [box(1, 1, 0, label=1), box(1, 2, 50, conf=0, label=8), box(1, 3, 90, 0, label=3)]
    found = [box(1, 7, 0), box(1, 8, 50), box(1, 9, 90)]
    named = {"pedestrian": 1}
    assert pair.score(truth, found[:2], on="boxes", classes=named).overall.mota == 1
    assert pair.score(truth, found, on="boxes", classes=named).overall.mota == 0


def jsonl(frame: int, instances: Instances, *, epoch: int = 0, source: str = "gate") -> str:
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


def standing(id_: int, name: str = "car", x: int = 10) -> Instances:
    masks = Masks.from_boxes([(x, 10, x + 10, 20)], SIZE)
    return Instances(masks.boxes, [0.9], [77], masks, {77: name}, [id_])


def test_run_lengths_may_hold_what_separates_columns_elsewhere(pair: Pair):
    truth = [mots(frame, 5, 1, 1, 0, 2, 11) for frame in range(3)]
    assert ";" in truth[0]
    assert pair.score(truth, truth).overall.hota == pytest.approx(1)


def test_our_own_results(pair: Pair):
    """A class is known by its name, whatever id a model gives it."""
    truth = [mots(frame, 5, 1, 10, 10) for frame in range(3)]
    found = [jsonl(frame, standing(4)) for frame in range(3)]
    score = pair.score(truth, found, classes={"car": 1}).overall
    assert [getattr(score, name) for name in (*PERFECT, "smota")] == pytest.approx([1] * 6)
    assert pair.score(found, found).overall.hota == pytest.approx(1)
    untracked = pair.score(truth, [*found[:2], jsonl(2, standing(-1))]).overall
    assert untracked.mota == pytest.approx(2 / 3)


def test_identities_do_not_cross_epochs(pair: Pair):
    truth = [mots(frame, 5, 1, 10, 10) for frame in range(4)]
    found = [jsonl(frame, standing(0), epoch=frame // 2) for frame in range(4)]
    score = pair.score(truth, found).overall
    assert (score.switches, score.idf1) == (1, pytest.approx(0.5))


def test_frames_may_be_far_apart(pair: Pair):
    text = [box(1, 3, 0), box(10**12, 3, 0)]
    score = pair.score(text, text, on="boxes", classes={}).overall
    assert (score.mota, score.frames) == (1, 10**12)


def test_a_mark_of_byte_order_is_no_number(pair: Pair):
    text = ["\ufeff" + box(1, 3, 0)]
    assert pair.score(text, text, on="boxes", classes={}).overall.mota == 1


def test_no_results_at_all(pair: Pair):
    score = pair.score([mots(0, 5, 1, 10, 10)], [""]).overall
    assert (score.hota, score.mota, score.idf1, score.tracks) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        (["0 1 1 60 100"], {}, r"results.txt: line 1: isn't MOTS text: frame id class height"),
        ([mots(0, 1, 1, 0, 0), "0 x 1 60 100 a"], {}, "line 2: 'x' isn't a number"),
        (["0 1.5 1 60 100 a"], {}, r"line 1: '1.5' isn't an integer"),
        (["0 1e300 1 60 100 a"], {}, "line 1: '1e300' isn't an integer"),
        (["-1 1 1 60 100 a"], {}, "line 1: frame -1, but frames are counted from 0"),
        ([mots(0, 1, 1, 0, 0)[:-2]], {}, "line 1: run lengths"),
        (["", mots(0, 1, 1, 0, 0), mots(0, 1, 2, 9, 9)], {}, "line 3: id 1 is in frame 0 twice"),
        (
            [
                mots(0, 1, 1, 0, 0),
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
            [box(1, 1, 0)],
            {"classes": {"car": 1}},
            "results.txt: has only boxes: set overlap: boxes",
        ),
        ([box(1, 1, 0)], {"on": "boxes"}, "line 1: has no class in the eighth column"),
        ([box(0, 1, 0)], {"classes": {}}, "line 1: frame 0, but frames are counted from 1"),
        (["1,2,3"], {"classes": {}}, "line 1: isn't MOT text"),
        (["1,1,nan,5,5,5"], {"classes": {}}, "line 1: 'nan' isn't a finite number"),
        ([mots(0, 1, 3, 0, 0)], {}, "results.txt: has no track of car, pedestrian: it has 3"),
        ([jsonl(0, standing(1, "auto"))], {}, "has no track of car, pedestrian: it has auto"),
        ([jsonl(0, standing(1)), '{"v": 1'], {}, "line 2: not a RecordedMessage"),
        ([jsonl(0, standing(1))] * 2, {}, "line 2: frame 0 is in the file twice"),
        (
            [jsonl(0, standing(1)), jsonl(1, standing(1), source="yard")],
            {},
            "line 2: the source is yard, before it was gate",
        ),
    ],
)
def test_mistakes_in_results(pair: Pair, results: list[str], options: dict, message: str):
    with pytest.raises(DataError, match=message) as error:
        pair.score([mots(0, 1, 1, 0, 0)], results, **options)
    assert "\n" not in str(error.value)


def test_mistakes_in_the_truth(pair: Pair):
    with pytest.raises(DataError, match=r"truth.txt: has no track of car, pedestrian: it has no"):
        pair.score([""], [mots(0, 1, 1, 0, 0)])
    with pytest.raises(DataError, match=r"truth.txt: has no track of bus: it has 1"):
        pair.score([mots(0, 1, 1, 0, 0)], [""], classes={"bus": 3})
    with pytest.raises(DataError, match="nowhere: can't be read: No such file"):
        evaluate_tracks(TrackingTask(truth="nowhere", results="nowhere"), pair.folder)


def test_without_trackeval(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="trackeval")

    monkeypatch.setattr(tracking_metrics, "import_module", missing)
    with pytest.raises(StreamsegError, match="pip install --no-deps trackeval") as error:
        pair.score(two_cars(1), two_cars(1))
    assert "\n" not in str(error.value)


def test_tables_and_json(pair: Pair):
    scores = pair.score([*two_cars(2), mots(0, 7, 2, 70, 40)], two_cars(2))
    table = make_tracking_table(scores)
    assert [row[0] for row in table.rows] == ["car", "pedestrian", "all classes"]
    assert table.rows[0] == ("car", *["100.0"] * 6, "0", "0", "2")
    assert {len(row) for row in table.rows} == {len(table.columns)}
    plain = json.loads(json.dumps(scores_to_dict(scores), allow_nan=False))
    assert plain["overall"]["tracks"] == 3
    assert plain["classes"]["car"]["hota"] == scores.classes["car"].hota
    one = make_tracking_table(pair.score(two_cars(2), two_cars(2), on="boxes", classes={"car": 1}))
    assert [len(row) for row in one.rows] == [9]


def noisy_mots(truth: Path, seed: int) -> list[str]:
    """The truth with masks left out, moved, given another id, and some where nothing is."""
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
        if label == "10":  # something found in the region that isn't annotated
            id_, label = f"{9000 + random.integers(3)}{frame}", "1"
        elif random.random() < 0.05:
            id_ = f"{int(id_) + 500}"
        rows.append(f"{frame} {id_} {label} {height} {width} {mask.counts[0]}")
    return _without_overlaps(rows)


def _without_overlaps(rows: list[str]) -> list[str]:
    """As the official readers want it: a pixel belongs to who comes first."""
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
def test_as_the_official_program_scores_kitti_mots(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    import trackeval

    truth = KITTI / f"{name}.txt"
    results = tmp_path / "trackers" / "ours" / "data" / f"{name}.txt"
    results.parent.mkdir(parents=True)
    results.write_text("\n".join(noisy_mots(truth, seed=int(name))) + "\n")
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
        ours = scores.classes[class_]
        assert ours.mota == pytest.approx(float(clear["MOTA"]), abs=1e-9)
        assert ours.smota == pytest.approx(float(clear["sMOTA"]), abs=1e-9)
        assert ours.switches == clear["IDSW"] > 0
        assert ours.hota == pytest.approx(float(np.mean(hota["HOTA"])), abs=1e-9)
        assert ours.idf1 == pytest.approx(float(identity["IDF1"]), abs=1e-9)
        assert 0.2 < ours.hota < 0.95
    capsys.readouterr()


@pytest.mark.parametrize("benchmark", ["MOT15", "MOT17"])
def test_as_the_official_program_scores_mot(
    tmp_path: Path, benchmark: str, capsys: pytest.CaptureFixture[str]
):
    import trackeval

    random = np.random.default_rng(4)
    truth, found = [], []
    for frame in range(1, 40):
        for id_ in range(12):
            x, y = 40 * id_ + frame, 10 * (id_ % 3)
            label = [1, 1, 1, 1, 1, 2, 3, 7, 8, 12, 1, 1][id_] if benchmark == "MOT17" else -1
            conf = int(label in (1, -1) and id_ != 11)
            truth.append(f"{frame},{id_ + 1},{x},{y},30,60,{conf},{label},1.0")
            if random.random() < 0.8:
                dx, dy = random.normal(0, 4, 2)
                track = id_ + 1 + 50 * (random.random() < 0.1)
                found.append(f"{frame},{track},{x + dx:.2f},{y + dy:.2f},30,60,0.9,-1,-1,-1")
    (tmp_path / "gt" / "S" / "gt").mkdir(parents=True)
    (tmp_path / "gt" / "S" / "gt" / "gt.txt").write_text("\n".join(truth) + "\n")
    (tmp_path / "trackers" / "ours" / "data").mkdir(parents=True)
    (tmp_path / "trackers" / "ours" / "data" / "S.txt").write_text("\n".join(found) + "\n")
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
    ours = evaluate_tracks(task, tmp_path).overall
    assert ours.mota == pytest.approx(float(clear["MOTA"]), abs=1e-9)
    assert ours.switches == clear["IDSW"]
    assert ours.fragments == clear["Frag"]
    assert ours.hota == pytest.approx(float(np.mean(hota["HOTA"])), abs=1e-9)
    assert 0.1 < ours.hota < 0.95
    capsys.readouterr()


@needs_kitti
@pytest.mark.parametrize("on", ["masks", "boxes"])
def test_kitti_truth_against_itself(on: str):
    task = TrackingTask(truth="0016.txt", results="0016.txt", overlap=on, classes=CLASSES)
    scores = evaluate_tracks(task, KITTI)
    assert (scores.name, scores.overall.frames) == ("0016", 209)
    names = (*PERFECT, "smota") if on == "masks" else PERFECT
    for score in (*scores.classes.values(), scores.overall):
        assert [getattr(score, name) for name in names] == pytest.approx([1] * len(names))
        assert score.switches == 0


def swapped(lines: list[str], from_frame: int) -> list[str]:
    """The two longest tracks change their ids at a frame."""
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
def test_kitti_with_ids_swapped(pair: Pair):
    lines = (KITTI / "0016.txt").read_text().splitlines()
    perfect = pair.score(lines, lines).classes["pedestrian"]
    score = pair.score(lines, swapped(lines, 100)).classes["pedestrian"]
    assert 1 <= score.switches <= 2
    assert score.hota < perfect.hota - 0.01
    assert score.idf1 < perfect.idf1 - 0.01
    assert score.mota == pytest.approx(
        1 - score.switches / sum(" 2 " in i[:12] for i in lines), abs=1e-3
    )


@pytest.mark.slow
@needs_kitti
def test_our_own_results_score_as_the_same_in_mots_text(pair: Pair, tmp_path: Path):
    lines = noisy_mots(KITTI / "0016.txt", seed=3)
    truth = (KITTI / "0016.txt").read_text().splitlines()
    in_text = pair.score(truth, lines)
    names = {number: name for name, number in CLASSES.items()}
    tracks = read_tracks(tmp_path / "results.txt", CLASSES)
    recorded = []
    for number, frame in sorted(tracks.frames.items()):
        kept = np.flatnonzero(np.isin(frame.labels, list(names)))
        masks = frame.masks[kept]
        recorded.append(
            jsonl(
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
    ours = pair.score(truth, recorded)
    for name in CLASSES:  # ids are numbered otherwise, so that sums are in another order
        assert asdict(ours.classes[name]) == pytest.approx(asdict(in_text.classes[name]), abs=1e-9)
    assert 0.2 < ours.overall.hota < 0.95


@needs_mot15
def test_mot15_truth_against_itself():
    for scene in ("TUD-Campus", "TUD-Stadtmitte"):
        task = TrackingTask(
            truth=f"{scene}/gt/gt.txt", results=f"{scene}/gt/gt.txt", overlap="boxes", name=scene
        )
        scores = evaluate_tracks(task, MOT15)
        assert scores.name == scene
        assert [getattr(scores.overall, name) for name in PERFECT] == pytest.approx([1] * 5)
        assert scores.overall.switches == 0
