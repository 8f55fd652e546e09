"""Panoptic results in files, in the annotated video and in messages."""

from __future__ import annotations

import json
import os
import weakref
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import yaml
from support.annotations import find_dataset_problems
from support.commands import Run
from support.panoptic import (
    NAME,
    SIZE,
    load_ideal_model,
    process_panoptic,
    read_panoptic_json,
    use_color_model,
    write_ideal_weights,
    write_panoptic_dataset,
)
from support.processes import files_no_larger_than
from support.publishers import panoptic_result

from streamseg import connect, protocol
from streamseg.config import Config, PublishConfig, SourceConfig, TrackerConfig
from streamseg.config.training import PanopticData
from streamseg.datasets import load_sample, open_dataset
from streamseg.errors import OutputError, StreamsegError
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.stages import track
from streamseg.recording.process import Processor
from streamseg.service.service import Service
from streamseg.sinks.base import run_sink
from streamseg.sinks.files.panoptic import PanopticFiles
from streamseg.structures.masks import Mask
from streamseg.structures.results import MAX_SEGMENT_ID, Segment
from streamseg.visualization import annotate, encode_jpeg

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def family(monkeypatch):
    use_color_model(monkeypatch)


def ids_of(png):
    """Return the segment ids of a PNG, R + 256 G + 65536 B."""
    blue, green, red = np.moveaxis(cv2.imread(str(png), cv2.IMREAD_COLOR).astype(int), 2, 0)
    return red + 256 * green + 65536 * blue


def messages_of(folder):
    lines = (folder / "results.jsonl").read_bytes().splitlines()
    return [protocol.decode(line, protocol.RecordedMessage) for line in lines]


def test_pngs_and_json_hold_the_segments_of_the_results(tmp_path):
    write_panoptic_dataset(tmp_path / "world")
    folder = process_panoptic(
        load_ideal_model(tmp_path), tmp_path / "world" / "images", tmp_path / "out"
    )
    names = ["annotated.mp4", "panoptic", "panoptic.json", "results.jsonl", "summary.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    written = read_panoptic_json(folder)
    assert written["categories"] == [
        {"id": 1, "name": "disc", "isthing": 1},
        {"id": 2, "name": "sky", "isthing": 0},
        {"id": 3, "name": "grass", "isthing": 0},
    ]
    messages = messages_of(folder)
    size = {"height": SIZE[0], "width": SIZE[1]}
    assert written["images"] == [{"id": m.frame, "file_name": m.item, **size} for m in messages]
    for message, entry in zip(messages, written["annotations"], strict=True):
        assert (entry["image_id"], entry["file_name"]) == (message.frame, message.item)
        ids = ids_of(folder / "panoptic" / entry["file_name"])
        segments = protocol.decode_segments(message)
        assert [s.name for s in segments] == ["disc", "disc", "sky", "grass"]
        for segment, info in zip(segments, entry["segments_info"], strict=True):
            assert np.array_equal(ids == segment.id, segment.mask.to_array())
            rows, columns = np.nonzero(ids == segment.id)
            x, y = columns.min(), rows.min()
            assert info == {
                "id": segment.id,
                "category_id": segment.label,
                "iscrowd": 0,
                "area": len(rows),
                "bbox": [x, y, columns.max() + 1 - x, rows.max() + 1 - y],
            }


def test_panoptic_output_is_a_valid_dataset_with_a_pq_of_1_against_itself(streamseg: Run, tmp_path):
    write_panoptic_dataset(tmp_path / "world")
    folder = process_panoptic(
        load_ideal_model(tmp_path), tmp_path / "world" / "images", tmp_path / "out"
    )
    config = PanopticData(
        images=str(tmp_path / "world" / "images"),
        annotations="panoptic.json",
        segments="panoptic",
    )
    assert find_dataset_problems(config, folder) == []
    dataset = open_dataset(config, folder)
    sample = load_sample(dataset, dataset.images[0], ("disc",), 0, ("grass", "sky"))
    assert sample.targets.stuff.unique().tolist() == [0, 1, 2]
    task = {"truth": "panoptic.json", "truth_segments": "panoptic"}
    task |= {"results": "panoptic.json", "result_segments": "panoptic"}
    file = tmp_path / "files.yaml"
    file.write_text(yaml.safe_dump({"root": str(folder), "panoptic": [task]}))
    ended = streamseg("eval", file, "--json", "n.json")
    assert ended.returncode == 0, ended.stderr
    (scores,) = json.loads((tmp_path / "n.json").read_text())["panoptic"]
    assert (scores["all"]["pq"], scores["things"]["pq"], scores["stuff"]["pq"]) == (1, 1, 1)
    assert scores["images"] == 4


def test_pngs_of_a_video_are_named_by_frame_index(tmp_path):
    folder = process_panoptic(
        load_ideal_model(tmp_path), "test:?size=64x48&frames=5&objects=2", tmp_path / "out"
    )
    names = [f"{number:06}.png" for number in range(5)]
    assert sorted(path.name for path in (folder / "panoptic").iterdir()) == names
    written = read_panoptic_json(folder)
    assert [entry["file_name"] for entry in written["annotations"]] == names
    assert [image["id"] for image in written["images"]] == [0, 1, 2, 3, 4]


def test_images_that_differ_in_their_suffix_get_separate_pngs(tmp_path):
    write_panoptic_dataset(tmp_path / "world", count=1)
    images = tmp_path / "world" / "images"
    for name in ("00.bmp", "00.png.bmp", "a\nb.bmp"):
        assert cv2.imwrite(str(images / "new.bmp"), cv2.imread(str(images / "00.png")))
        (images / "new.bmp").rename(images / name)
    folder = process_panoptic(load_ideal_model(tmp_path), images, tmp_path / "out")
    written = read_panoptic_json(folder)
    names = [entry["file_name"] for entry in written["annotations"]]
    assert len(set(names)) == 4
    assert {path.name for path in (folder / "panoptic").iterdir()} == set(names)
    by_picture = dict(zip([image["file_name"] for image in written["images"]], names, strict=True))
    assert by_picture["00.bmp"] == "00.png"
    assert by_picture["a_b.bmp"] == "a_b.png"
    assert {by_picture["00.png"], by_picture["00.png.bmp"]} == {"00.png.png", "00.png.bmp.png"}


def test_stuff_is_drawn_in_the_video(tmp_path):
    write_panoptic_dataset(tmp_path / "world")
    folder = process_panoptic(
        load_ideal_model(tmp_path), tmp_path / "world" / "images", tmp_path / "out"
    )
    with av.open(str(folder / "annotated.mp4")) as video:
        decoded = next(video.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    message = messages_of(folder)[0]
    image = cv2.imread(str(tmp_path / "world" / "images" / message.item))[..., ::-1].copy()
    instances, segments = (
        protocol.decode_instances(message),
        protocol.decode_segments(message),
    )
    painted, plain = (annotate(image, instances, parts) for parts in (segments, None))
    for segment in segments:
        if not segment.thing:
            place = segment.mask.to_array()
            assert np.median(np.abs(decoded[place] - painted[place])) < 8
            assert np.median(np.abs(decoded[place] - plain[place])) > 16


def test_a_service_publishes_the_segments_that_a_recorded_run_writes(tmp_path):
    write_panoptic_dataset(tmp_path / "world")
    model, images = load_ideal_model(tmp_path), tmp_path / "world" / "images"
    service = Service(
        Config(
            sources=(SourceConfig(url=str(images), name="images"),),
            publish=PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=1),
        ),
        model,
    )
    service.start()
    with connect(service.endpoints["masks"], frames="annotated", timeout=30) as subscriber:
        received = list(subscriber)
    service.wait()
    recorded = messages_of(process_panoptic(model, images, tmp_path / "out"))
    assert [protocol.to_recorded(each.message) for each in received] == recorded
    for each in received:
        image = cv2.imread(str(images / each.item))[..., ::-1].copy()
        (parts,) = model.predict_panoptic([image])
        assert [(s.id, s.label, s.name, s.thing) for s in each.segments] == [
            (s.id, s.label, s.name, s.thing) for s in parts
        ]
        assert all(a.mask == b.mask for a, b in zip(each.segments, parts, strict=True))
        painted = annotate(image, each.instances, each.segments)
        assert each.jpeg == encode_jpeg(painted, PublishConfig().jpeg_quality)


def test_tracking_keeps_the_segments(tmp_path):
    before = panoptic_result()
    (after,) = track([before], TrackerConfig(), Metrics())
    assert after.segments is before.segments


def test_a_model_without_panoptic_results_is_refused_before_the_run(streamseg: Run, tmp_path):
    write_panoptic_dataset(tmp_path / "world")
    ended = streamseg("process", "world/images", "--out", "out", "--panoptic")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        f"streamseg: --panoptic: nanomask has no panoptic results; these have: {NAME}"
    )
    assert not (tmp_path / "out").exists()


def test_process_writes_panoptic_files_only_with_the_option(streamseg: Run, tmp_path):
    write_panoptic_dataset(tmp_path / "world")
    weights = write_ideal_weights(tmp_path / "w.safetensors")
    arguments = ("process", "world/images", "--model", NAME, "--weights", weights)
    assert streamseg(*arguments, "--out", "plain").returncode == 0
    assert streamseg(*arguments, "--out", "divided", "--panoptic").returncode == 0
    plain, divided = (tmp_path / name / "images" for name in ("plain", "divided"))
    assert not list(plain.glob("panoptic*"))
    assert len(list((divided / "panoptic").iterdir())) == 4
    assert (plain / "results.jsonl").read_bytes() == (divided / "results.jsonl").read_bytes()
    assert all(len(message.segments) == 4 for message in messages_of(plain))


def test_a_second_run_replaces_the_first_with_its_pngs(tmp_path):
    write_panoptic_dataset(tmp_path / "world", count=4)
    model = load_ideal_model(tmp_path)
    process_panoptic(model, tmp_path / "world" / "images", tmp_path / "out")
    (tmp_path / "world" / "images" / "02.png").unlink()
    folder = process_panoptic(model, tmp_path / "world" / "images", tmp_path / "out")
    names = [entry["file_name"] for entry in read_panoptic_json(folder)["annotations"]]
    assert names == ["00.png", "01.png", "03.png"]
    assert sorted(path.name for path in (folder / "panoptic").iterdir()) == names


# The files themselves


def sink(path):
    return PanopticFiles(path, {1: "person"}, {3: "car"})


def test_an_aborted_run_leaves_part_files_and_the_complete_ones_before(tmp_path):
    first = panoptic_result()
    with sink(tmp_path / "panoptic.json") as file:
        file.write_segments(first.frame, first.segments)
    whole = (tmp_path / "panoptic.json").read_bytes()
    aborted = sink(tmp_path / "panoptic.json")
    aborted.open()
    aborted.write_segments(replace(first.frame, index=7), first.segments)
    aborted.abort()
    # The files of the first run stay complete; those of the second keep their part names.
    assert (tmp_path / "panoptic.json").read_bytes() == whole
    assert [path.name for path in (tmp_path / "panoptic").iterdir()] == ["000000.png"]
    assert [path.name for path in (tmp_path / "panoptic.part").iterdir()] == ["000007.png"]
    assert b'"image_id":7' in (tmp_path / "panoptic.json.part").read_bytes()
    with sink(tmp_path / "panoptic.json") as file:
        file.write_segments(replace(first.frame, index=9), first.segments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["panoptic", "panoptic.json"]
    assert [path.name for path in (tmp_path / "panoptic").iterdir()] == ["000009.png"]


def test_the_json_file_is_renamed_after_the_folder_of_pngs(tmp_path, monkeypatch):
    """After a power failure at any time, every PNG that panoptic.json refers to exists."""
    first, renames = panoptic_result(), []
    with sink(tmp_path / "panoptic.json") as file:
        file.write_segments(first.frame, first.segments)

    rename = os.replace

    def watched(part, target, **folders):
        renames.append((Path(target).name, (tmp_path / "panoptic.json").exists()))
        return rename(part, target, **folders)

    monkeypatch.setattr(os, "replace", watched)
    with sink(tmp_path / "panoptic.json") as file:
        file.write_segments(first.frame, first.segments)
    assert renames == [("panoptic", False), ("panoptic.json", False)]


def test_output_without_frames_or_segments_is_valid(tmp_path):
    with sink(tmp_path / "none.json"):
        pass
    written = json.loads((tmp_path / "none.json").read_text())
    assert (written["images"], written["annotations"]) == ([], [])
    with sink(tmp_path / "void.json") as file:
        file.write_segments(panoptic_result().frame, ())
    (entry,) = json.loads((tmp_path / "void.json").read_text())["annotations"]
    assert entry["segments_info"] == []
    assert (ids_of(tmp_path / "void" / entry["file_name"]) == 0).all()


def test_empty_segments_are_omitted_and_large_ids_kept(tmp_path):
    result = panoptic_result()
    empty, last = Mask.from_array(np.zeros(result.frame.size, bool)), MAX_SEGMENT_ID
    person = replace(result.segments[0], id=last)
    with sink(tmp_path / "p.json") as file:
        file.write_segments(result.frame, (person, Segment(5, 3, "car", False, empty)))
    (entry,) = json.loads((tmp_path / "p.json").read_text())["annotations"]
    assert [info["id"] for info in entry["segments_info"]] == [last]
    ids = ids_of(tmp_path / "p" / "000000.png")
    assert np.array_equal(ids == last, person.mask.to_array())


@pytest.mark.parametrize("number", [0, -1, MAX_SEGMENT_ID + 1])
def test_segment_ids_beyond_24_bits_are_refused(tmp_path, number):
    result = panoptic_result()
    with sink(tmp_path / "p.json") as file, pytest.raises(StreamsegError, match="ids go from 1 to"):
        file.write_segments(result.frame, [replace(result.segments[0], id=number)])


def test_unwritable_paths_are_refused_when_opened(tmp_path):
    (tmp_path / "panoptic").write_text("a file")
    (tmp_path / "folder.json").mkdir()
    for path, message in (
        (tmp_path / "missing" / "p.json", "missing/p: can't be written: there is no such folder"),
        (tmp_path / "panoptic.json", "panoptic: can't be written: there is a file of that name"),
        (tmp_path / "folder.json", "folder.json: can't be written: there is a folder of that"),
    ):
        with pytest.raises(OutputError, match=message) as refused:
            sink(path).open()
        assert "\n" not in str(refused.value)


def test_a_full_disk_keeps_the_earlier_files_complete(tmp_path):
    result = panoptic_result()
    with sink(tmp_path / "p.json") as file:
        file.write_segments(result.frame, result.segments)
    whole = (tmp_path / "p.json").read_bytes()
    again, frames = sink(tmp_path / "p.json"), [replace(result.frame, index=n) for n in range(100)]
    reason = r"p\.json: can't be written: the file would be larger"
    with pytest.raises(OutputError, match=reason), files_no_larger_than(2000):
        list(run_sink(again, (replace(result, frame=frame) for frame in frames)))
    assert (tmp_path / "p.json").read_bytes() == whole
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["000000.png"]


def test_frames_are_released_after_writing(tmp_path):
    images = []

    def results():
        for index in range(6):
            image = np.zeros((40, 60, 3), np.uint8)
            images.append(weakref.ref(image))
            result = panoptic_result()
            yield replace(result, frame=replace(result.frame, index=index, image=image))

    for _ in run_sink(sink(tmp_path / "p.json"), results()):
        assert sum(image() is not None for image in images) <= 2  # this and the one before
    assert len(images) == 6


@pytest.mark.timeout(60)
def test_an_interrupted_run_completes_the_json_file(tmp_path):
    """Both signals complete the JSON file, and every PNG that it refers to exists."""
    model = load_ideal_model(tmp_path)
    url = "test:?size=64x48&frames=100000&objects=2"
    config = Config(sources=(SourceConfig(url=url, name="test"),))
    folder = tmp_path / "out" / "test"
    runs = []

    def progress(_what, done, _expected):
        if done == 5:
            end(runs[-1])

    for end in (Processor.stop, Processor.abort):
        runs.append(Processor(config, model, tmp_path / "out", progress, panoptic=True))
        (outcome,) = runs[-1].run()
        assert outcome.state == "interrupted"
        written = read_panoptic_json(folder)
        names = {entry["file_name"] for entry in written["annotations"]}
        assert {path.name for path in (folder / "panoptic").iterdir()} == names
        assert end is Processor.abort or len(names) == len(messages_of(folder)) >= 5
        assert not list(folder.glob("panoptic*.part"))
