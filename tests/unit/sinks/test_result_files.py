"""File sinks: results and videos are read back, and incomplete files keep their part name."""

import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
from fractions import Fraction
from pathlib import PurePath

import av
import numpy as np
import pytest
from support.processes import PEAK, files_no_larger_than

from streamseg import protocol
from streamseg.errors import OutputError
from streamseg.sinks.base import run_sink
from streamseg.sinks.files.part_file import (
    PartFolder,
    append_bytes,
    make_folder,
    make_subfolder,
    output_errors,
)
from streamseg.sinks.files.results import (
    IsolatedOutput,
    ResultsFile,
    VideoFile,
    write_json_atomically,
)
from streamseg.sinks.files.video import H264File, _TimestampConverter
from streamseg.structures.masks import Masks
from streamseg.structures.results import Frame, Instances, Result
from streamseg.visualization import annotate

RED, GREEN, BLUE, GREY = (200, 30, 40), (20, 180, 60), (40, 60, 220), (128, 128, 128)
TICK = 1 / 90_000


def plain(size, color=GREY):
    image = np.empty((*size, 3), np.uint8)
    image[:] = color
    return image


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def make_result(index, source="gate", pts=None, pixel_aspect=Fraction(1)):
    size = (48, 64)
    masks = Masks.from_boxes([(4 + index, 5, 20 + index, 30)], size)
    instances = Instances(masks.boxes, [0.1 + index / 30], [1], masks, {1: "person"}, [index])
    time = index / 25 if pts is None else pts
    frame = Frame(source, index, 0, time, 0.0, 0.0, plain(size), None, pixel_aspect)
    return Result(frame, instances, "test")


def opened(sink):
    sink.open()
    return sink


def write_all(sink, results):
    for result in results:
        sink.write(result)


def part(path):
    return path.with_name(path.name + ".part")


def decode(path):
    with av.open(str(path), format="mp4") as container:
        return list(container.decode(video=0))


def times(path):
    return [frame.time for frame in decode(path)]


def record(path, timestamps, size=(48, 64)):
    """Write a video with an image at each (pts, epoch); return the decoded times."""
    with VideoFile(path) as video:
        for pts, epoch in timestamps:
            video.write_image(plain(size), pts, epoch)
    return times(path)


# results.jsonl


def test_results_read_back_equal_those_written(tmp_path):
    path = tmp_path / "results.jsonl"
    results = [make_result(i) for i in range(5)]
    with ResultsFile(path) as file:
        write_all(file, results)
    lines = path.read_bytes().splitlines()
    messages = [protocol.decode(line, protocol.RecordedMessage) for line in lines]
    assert messages == [protocol.recorded_message(result, i) for i, result in enumerate(results)]
    back = protocol.decode_instances(messages[3])
    np.testing.assert_array_equal(back.scores, results[3].instances.scores)
    assert back.masks == results[3].instances.masks


def test_each_source_has_its_own_sequence_numbers(tmp_path):
    path = tmp_path / "results.jsonl"
    with ResultsFile(path) as file:
        write_all(file, [make_result(0, "a"), make_result(0, "b"), make_result(1, "a")])
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [(row["source"], row["seq"]) for row in rows] == [("a", 0), ("b", 0), ("a", 1)]


def test_a_result_is_written_before_it_is_passed_on(tmp_path):
    file = ResultsFile(tmp_path / "results.jsonl")
    written = run_sink(file, (make_result(i) for i in range(3)))
    for expected in (1, 2, 3):
        next(written)
        assert len(part(file.path).read_bytes().splitlines()) == expected
    assert list(written) == []
    assert len(file.path.read_bytes().splitlines()) == 3


def test_results_without_a_frame_are_an_empty_file(tmp_path):
    opened(ResultsFile(tmp_path / "results.jsonl")).close()
    assert (tmp_path / "results.jsonl").read_bytes() == b""


@pytest.mark.parametrize("kind", [ResultsFile, VideoFile])
def test_a_file_is_renamed_only_when_it_is_closed(tmp_path, kind):
    path = tmp_path / "out"
    path.write_text("of an earlier run")
    for _ in run_sink(kind(path), [make_result(0)]):
        assert path.read_text() == "of an earlier run"
    assert path.stat().st_size > 100
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", [ResultsFile, VideoFile])
def test_repeated_close_and_abort_have_no_effect(tmp_path, kind):
    file = opened(kind(tmp_path / "out"))
    write_all(file, [make_result(0)])
    file.close()
    content = file.path.read_bytes()
    file.close()
    file.abort()
    assert file.path.read_bytes() == content


@pytest.mark.parametrize("kind", [ResultsFile, VideoFile])
def test_an_exception_leaves_the_part_and_no_file(tmp_path, kind):
    def results():
        yield make_result(0)
        yield make_result(1)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), kind(tmp_path / "out") as file:
        write_all(file, results())
    file.close()  # does nothing any more
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.part"]


@pytest.mark.parametrize("kind", [ResultsFile, VideoFile])
def test_the_name_of_a_file_sink_is_its_file_name(tmp_path, kind):
    with kind(tmp_path / "out.x") as file:
        assert file.name == "out.x"


def writers(path):
    return [
        lambda: opened(ResultsFile(path)),
        lambda: opened(VideoFile(path)),
        lambda: write_json_atomically(path, {}),
    ]


@pytest.mark.parametrize("which", range(3))
def test_a_missing_folder_is_an_error_of_one_line(tmp_path, which):
    path = tmp_path / "missing" / "out"
    with pytest.raises(OutputError, match=r"missing/out: .*no such folder.*make it") as caught:
        writers(path)[which]()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", range(3))
def test_a_folder_of_the_same_name_is_refused_when_the_file_is_opened(tmp_path, which):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="there is a folder of that name"):
        writers(tmp_path / "out")[which]()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("which", range(3))
def test_a_file_in_place_of_the_parent_folder_is_an_output_error(tmp_path, which):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="isn't a folder"):
        writers(tmp_path / "file" / "out")[which]()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("which", range(3))
def test_a_folder_without_write_permission_is_an_output_error(tmp_path, which):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OutputError, match="no permission to write"):
        writers(tmp_path / "out")[which]()


def test_a_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch):
    def full(file, data):
        io.FileIO.write(file, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "results.jsonl"
    file = opened(ResultsFile(path))
    file.write(make_result(0))
    before = part(path).read_bytes()
    monkeypatch.setattr("streamseg.sinks.files.part_file.write_whole", full)
    with pytest.raises(OutputError, match=r"results\.jsonl: .*the disk is full.*make room"):
        file.write(make_result(1))
    file.abort()
    assert not path.exists()
    assert part(path).read_bytes() == before  # nothing of the line that didn't fit


def test_results_that_do_not_fit_leave_a_part_file_of_whole_lines(tmp_path):
    path = tmp_path / "results.jsonl"
    with files_no_larger_than(1000), pytest.raises(OutputError, match="larger than it may be"):  # noqa: SIM117
        with ResultsFile(path) as file:
            write_all(file, (make_result(i) for i in range(20)))
    assert not path.exists()
    *lines, end = part(path).read_bytes().split(b"\n")
    assert len(lines) > 2
    assert end == b""
    for line in lines:
        protocol.decode(line, protocol.RecordedMessage)


@pytest.mark.parametrize("missing", [1, 300, 30_000, 100_000])
def test_a_video_whose_end_does_not_fit_keeps_its_part_name(tmp_path, missing):
    images = [noise((240, 320), seed) for seed in range(4)]

    def write(path):
        video = opened(VideoFile(path))
        for index, image in enumerate(images):
            video.write_image(image, index / 25)
        video.close()

    write(tmp_path / "whole.mp4")
    size = (tmp_path / "whole.mp4").stat().st_size
    assert size > missing
    with files_no_larger_than(size - missing), pytest.raises(OutputError, match=r"full\.mp4"):
        write(tmp_path / "full.mp4")
    assert not (tmp_path / "full.mp4").exists()


def test_importing_the_module_loads_neither_av_nor_cv2_nor_torch():
    code = (
        "import sys, streamseg.sinks.files.results; "
        "print({'av', 'cv2', 'torch'} & set(sys.modules) or 'none')"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert completed.stdout.strip() == "none"


# the video


@pytest.mark.parametrize("size", [(576, 768), (1080, 1920)])
def test_decoded_colors_are_right_with_and_without_the_color_flags(tmp_path, size):
    path = tmp_path / "out.mp4"
    image = plain(size)
    half_y, half_x = size[0] // 2, size[1] // 2
    image[:half_y, :half_x], image[:half_y, half_x:], image[half_y:, :half_x] = RED, GREEN, BLUE
    with VideoFile(path) as video:
        video.write_image(image, 0.0)
    (frame,) = decode(path)
    assert (frame.height, frame.width) == size
    assert frame.format.name == "yuv420p"
    assert (frame.colorspace, frame.color_range) == (6, 1)  # BT.601, limited
    assert (frame.color_primaries, frame.color_trc) == (1, 1)
    by_flag = frame.to_ndarray(format="rgb24")
    by_assumption = frame.reformat(format="rgb24", src_colorspace="ITU601").to_ndarray()
    for decoded in (by_flag, by_assumption):
        for (y, x), color in zip(
            [(1, 1), (1, 3), (3, 1), (3, 3)], (RED, GREEN, BLUE, GREY), strict=True
        ):
            pixel = decoded[y * size[0] // 4, x * size[1] // 4].astype(int)
            assert np.abs(pixel - color).max() <= 4


def test_black_and_white_use_the_whole_range(tmp_path):
    path = tmp_path / "out.mp4"
    image = plain((64, 64), (0, 0, 0))
    image[:, 32:] = 255
    with VideoFile(path) as video:
        video.write_image(image, 0.0)
    decoded = decode(path)[0].to_ndarray(format="rgb24")
    assert decoded[32, 16].max() <= 2
    assert decoded[32, 48].min() >= 253


def test_the_video_has_the_format_that_browsers_play(tmp_path):
    path = tmp_path / "out.mp4"
    record(path, [(i / 25, 0) for i in range(30)])
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert stream.codec_context.codec.canonical_name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_times_of_a_variable_frame_rate_are_kept(tmp_path):
    timestamps = [1.4, 1.44, 1.5, 1.6, 1.6 + 1001 / 30000, 4.0, 4.01]
    found = record(tmp_path / "out.mp4", [(pts, 0) for pts in timestamps])
    np.testing.assert_allclose(found, np.array(timestamps) - 1.4, rtol=0, atol=TICK)


def test_repeated_and_earlier_times_become_the_next_possible(tmp_path):
    found = record(tmp_path / "out.mp4", [(t, 0) for t in (0.0, 0.04, 0.04, 0.03, 0.08)])
    expected = [0, 0.04, 0.04 + TICK, 0.04 + 2 * TICK, 0.08]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TICK / 2)


def test_an_epoch_that_goes_back_in_time_continues_after_the_last_image(tmp_path):
    timestamps = [(0.0, 0), (0.1, 0), (0.0, 1), (0.1, 1), (0.2, 1), (0.05, 2)]
    found = record(tmp_path / "out.mp4", timestamps)
    np.testing.assert_allclose(found, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], rtol=0, atol=TICK)


def test_an_epoch_that_does_not_go_back_keeps_its_times(tmp_path):
    found = record(tmp_path / "out.mp4", [(0.0, 0), (0.1, 0), (5.0, 1), (5.1, 1)])
    np.testing.assert_allclose(found, [0.0, 0.1, 5.0, 5.1], rtol=0, atol=TICK)


def test_a_clock_that_is_set_makes_no_gap_in_the_video(tmp_path):
    today = 1_790_000_000.0
    timestamps = [(today, 0), (today + 0.1, 0), (7.0, 1), (7.1, 1), (today, 2), (today + 0.1, 2)]
    found = record(tmp_path / "out.mp4", timestamps)
    np.testing.assert_allclose(found, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], rtol=0, atol=TICK)


def test_times_below_zero_begin_at_zero(tmp_path):
    found = record(tmp_path / "out.mp4", [(-0.5, 0), (-0.4, 0), (0.0, 0)])
    np.testing.assert_allclose(found, [0.0, 0.1, 0.5], rtol=0, atol=TICK)


def test_the_last_image_is_shown_as_long_as_the_one_before(tmp_path):
    path = tmp_path / "out.mp4"
    record(path, [(0.0, 0), (0.2, 0), (0.4, 0)])
    with av.open(str(path)) as container:
        assert container.duration == pytest.approx(600_000, abs=2000)


def test_a_single_image_makes_a_video(tmp_path):
    assert record(tmp_path / "out.mp4", [(3.0, 0)]) == [0.0]


@pytest.mark.parametrize("first", [-95443.7, 0.08, 1800.0, 1_790_000_000.0])
def test_a_video_starts_at_zero_for_any_first_timestamp(tmp_path, first):
    path = tmp_path / "out.mp4"
    found = record(path, [(first, 0), (first + 0.1, 0), (first + 0.3, 0)])
    np.testing.assert_allclose(found, [0.0, 0.1, 0.3], rtol=0, atol=TICK)
    with av.open(str(path)) as container:
        assert container.start_time == 0
        assert container.duration == pytest.approx(500_000, abs=2000)


def test_no_image_creates_no_video_and_keeps_an_existing_one(tmp_path):
    path = tmp_path / "out.mp4"
    opened(VideoFile(path)).close()
    assert list(tmp_path.iterdir()) == []
    path.write_text("of an earlier run")
    opened(VideoFile(path)).close()
    assert path.read_text() == "of an earlier run"


@pytest.mark.parametrize("size", [(47, 64), (48, 63), (1, 1), (2, 17), (241, 321)])
def test_odd_sizes_become_even_by_repeating_the_edge(tmp_path, size):
    path = tmp_path / "out.mp4"
    image = plain(size, BLUE)
    image[-1, :], image[:, -1] = RED, RED
    with VideoFile(path) as video:
        video.write_image(image, 0.0)
    (frame,) = decode(path)
    assert (frame.height, frame.width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    corner = frame.to_ndarray(format="rgb24")[-1, -1].astype(int)
    assert corner[0] > 100 > corner[2]


@pytest.mark.parametrize("shape", [Fraction(12, 11), Fraction(4, 3), Fraction(1)])
def test_the_pixel_aspect_ratio_is_kept(tmp_path, shape):
    path = tmp_path / "out.mp4"
    with VideoFile(path) as video:
        write_all(video, [make_result(row, pixel_aspect=shape) for row in (0, 1)])
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == shape
    assert len(decode(path)) == 2


@pytest.mark.parametrize(
    ("later", "inside"),
    [
        ((120, 320), (60, 180, 0, 320)),
        ((480, 320), (0, 240, 80, 240)),
        ((24, 32), (0, 240, 0, 320)),
    ],
)
def test_images_of_another_size_are_letterboxed(tmp_path, later, inside):
    path = tmp_path / "out.mp4"
    with VideoFile(path) as video:
        video.write_image(plain((240, 320)), 0.0)
        video.write_image(plain(later, RED), 0.1)
    first, second = decode(path)
    assert (first.height, first.width) == (second.height, second.width) == (240, 320)
    red = second.to_ndarray(format="rgb24")[..., 0] > 100
    y1, y2, x1, x2 = inside
    expected = np.zeros((240, 320), np.bool_)
    expected[y1:y2, x1:x2] = True
    assert (red != expected).mean() < 0.02


def test_images_of_another_pixel_aspect_ratio_are_letterboxed(tmp_path):
    path = tmp_path / "out.mp4"
    with VideoFile(path) as video:
        video.write_image(plain((240, 320)), 0.0)
        video.write_image(plain((240, 160), RED), 0.1, pixel_aspect=Fraction(2))
    decoded = decode(path)[1].to_ndarray(format="rgb24")
    assert (decoded[..., 0] > 100).mean() > 0.98


def test_an_aborted_video_can_be_played_up_to_its_last_image(tmp_path):
    path = tmp_path / "out.mp4"
    video = opened(VideoFile(path))
    for index in range(10):
        video.write_image(plain((48, 64)), index / 25)
    video.abort()
    assert not path.exists()
    assert len(decode(part(path))) == 10


def test_a_video_shows_the_annotated_results(tmp_path):
    path = tmp_path / "out.mp4"
    results = [make_result(i) for i in range(3)]
    with VideoFile(path) as video:
        write_all(video, results)
    decoded = decode(path)[2].to_ndarray(format="rgb24").astype(int)
    painted = annotate(results[2].frame.image, results[2].instances)
    assert np.abs(decoded - painted).mean() < 12
    assert np.abs(decoded - results[2].frame.image).mean() > 15


def test_the_encoder_uses_one_thread(tmp_path):
    def threads():
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208

    with VideoFile(tmp_path / "out.mp4") as video:
        before = threads()
        for index in range(20):
            video.write_image(noise((240, 320), index), index / 25)
        assert threads() - before <= 1


@pytest.mark.slow
def test_memory_is_constant_over_thousands_of_images(tmp_path):
    code = (
        PEAK
        + """
import sys
import numpy as np
from pathlib import Path
from streamseg.sinks.files.results import VideoFile
image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
with VideoFile(Path(sys.argv[1])) as video:
    for index in range(5000):
        video.write_image(image, index / 25)
        if index in (500, 4999):
            print(peak())
"""
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out.mp4")],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    early, late = map(int, completed.stdout.split())
    assert late < 1.05 * early


# summary.json


def test_json_is_written_completely(tmp_path):
    path = tmp_path / "summary.json"
    write_json_atomically(path, {"frames": 3, "source": "Zürich", "fps": None})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "frames": 3,
        "source": "Zürich",
        "fps": None,
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    write_json_atomically(path, {"frames": 3})
    with files_no_larger_than(100), pytest.raises(OutputError, match=r"summary\.json"):
        write_json_atomically(path, {"text": "x" * 1000})
    assert json.loads(path.read_text()) == {"frames": 3}


def test_nan_is_refused_in_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomically(tmp_path / "summary.json", {"fps": float("nan")})
    assert list(tmp_path.iterdir()) == []


# Links, and other things at the path of a file


def linked(tmp_path, path, kind):
    """Create a link of a kind at ``path``; return the file that it leads to."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    if kind == "hard":
        os.link(precious, path)
    else:
        path.symlink_to(precious if kind == "link" else tmp_path / "nowhere")
    return precious


@pytest.mark.parametrize("where", ["part", "whole.part", "target"])
@pytest.mark.parametrize("kind", ["link", "hard", "dangling"])
@pytest.mark.parametrize("which", range(3))
def test_no_link_is_written_through(tmp_path, which, kind, where):
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "file"
    at = path if where == "target" else path.with_name(f"file.{where}")
    precious = linked(tmp_path, at, kind)
    sink = writers(path)[which]()
    if sink is not None:
        sink.write(make_result(0))
        sink.close()
    assert precious.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert not path.is_symlink()
    assert path.stat().st_size > 2
    assert path.stat().st_nlink == 1


def test_a_part_file_replaced_by_another_program_is_an_error(tmp_path):
    path = tmp_path / "results.jsonl"
    file = opened(ResultsFile(path))
    file.write(make_result(0))
    part(path).unlink()
    precious = linked(tmp_path, part(path), "link")
    with pytest.raises(OutputError, match="another program replaced it"):
        file.close()
    assert not path.exists()
    assert precious.read_text() == "precious"


def test_a_file_is_renamed_within_the_folder_that_it_was_opened_in(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "other").mkdir()
    with ResultsFile(tmp_path / "out" / "results.jsonl") as file:
        file.write(make_result(0))
        (tmp_path / "out").rename(tmp_path / "moved")
        (tmp_path / "out").symlink_to(tmp_path / "other")
    assert [entry.name for entry in (tmp_path / "moved").iterdir()] == ["results.jsonl"]
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("which", range(3))
def test_a_pipe_or_device_is_not_replaced(tmp_path, which):
    os.mkfifo(tmp_path / "out")
    with pytest.raises(OutputError, match="it is a device or pipe"):
        writers(tmp_path / "out")[which]()
    assert stat.S_ISFIFO((tmp_path / "out").stat().st_mode)


def test_part_folders_follow_no_link(tmp_path):
    (tmp_path / "target").mkdir()
    for name in ("png", "png.part"):
        (tmp_path / name).symlink_to(tmp_path / "target")
    folder = PartFolder(tmp_path / "png")
    (tmp_path / "png.part" / "1.png").symlink_to(tmp_path / "target" / "1.png")
    with pytest.raises(FileExistsError):
        folder.write_file("1.png", b"pixels")
    folder.write_file("2.png", b"pixels")
    folder.publish()
    assert list((tmp_path / "target").iterdir()) == []
    assert not (tmp_path / "png").is_symlink()
    assert (tmp_path / "png" / "2.png").read_bytes() == b"pixels"


def test_appending_follows_no_link(tmp_path):
    precious = linked(tmp_path, tmp_path / "steps.csv", "link")
    with (
        pytest.raises(OutputError, match="links are not followed: remove it"),
        output_errors(precious),
    ):
        append_bytes(tmp_path / "steps.csv", b"1,2")
    assert precious.read_text() == "precious"
    append_bytes(precious, b", and more")
    assert precious.read_text() == "precious, and more"


def test_an_output_folder_may_be_a_link_but_not_its_subfolders(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    make_folder(tmp_path / "out")
    make_subfolder(tmp_path / "out", PurePath("cam/clip"))
    assert (tmp_path / "disk" / "cam" / "clip").is_dir()
    (tmp_path / "out" / "other").symlink_to(tmp_path / "disk")
    for folder in ("other", "other/below"):
        with pytest.raises(OutputError, match=r"other: is a link, .*: remove it"):
            make_subfolder(tmp_path / "out", PurePath(folder))


# Videos of programs that were killed, or filled the disk


def test_a_video_copied_from_fragments_equals_one_written_directly(tmp_path):
    """Compared with an MP4 that the same packets are written to directly."""
    images = [noise((48, 64), seed) for seed in range(30)]
    path = tmp_path / "out.mp4"
    with VideoFile(path) as video:
        for index, image in enumerate(images):
            video.write_image(image, 7 + index / 30, pixel_aspect=Fraction(4, 3))
    encoder = H264File.__new__(H264File)
    encoder._first_size = encoder._size = (48, 64)
    encoder._pixel_aspect, encoder._clock = Fraction(4, 3), _TimestampConverter()
    direct = tmp_path / "direct.mp4"
    with av.open(str(direct), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        encoder._container, encoder._stream = container, encoder._add_stream(container)
        for index, image in enumerate(images):
            encoder.write(image, 7 + index / 30, 0, Fraction(4, 3))
        encoder._encode(None)
    assert path.read_bytes() == direct.read_bytes()


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from streamseg.sinks.files.results import VideoFile
video = VideoFile(Path(sys.argv[1]))
video.open()
rng = np.random.default_rng(0)
for index in range(40):
    video.write_image(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), index / 25)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_video_of_a_killed_process_can_be_played(tmp_path):
    path = tmp_path / "out.mp4"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(decode(part(path))) >= 38  # without those that the encoder and the muxer buffered
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4.part"]


@pytest.mark.parametrize("limit", [10_000, 60_000, 61_234])
def test_a_video_that_filled_the_disk_can_be_played(tmp_path, limit):
    path = tmp_path / "out.mp4"
    video = opened(IsolatedOutput(VideoFile(path)))
    with files_no_larger_than(limit):
        for index in range(60):
            image = noise((48, 64), index)
            video.attempt(lambda file, image=image, pts=index / 25: file.write_image(image, pts))
    video.close()
    assert "larger than it may be" in str(video.failure)
    decoded = decode(part(path))
    times = [float(frame.time) for frame in decoded]
    assert times == pytest.approx([i / 25 for i in range(len(decoded))], abs=TICK)
    assert part(path).stat().st_size > 0.6 * limit
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4.part"]


def test_a_copy_that_does_not_fit_leaves_the_fragments(tmp_path, monkeypatch):
    path = tmp_path / "out.mp4"
    video = opened(VideoFile(path))
    for index in range(20):
        video.write_image(noise((48, 64), index), index / 25)
    size = part(path).stat().st_size

    def smaller(encoder, whole, copy=H264File.copy_into):
        with files_no_larger_than(size // 2):
            copy(encoder, whole)

    monkeypatch.setattr(H264File, "copy_into", smaller)
    with pytest.raises(OutputError, match=r"out\.mp4: can't be written"):
        video.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4.part"]
    assert len(decode(part(path))) == 20


# Images that are too large for H.264


@pytest.mark.parametrize("size", [(2, 16_385), (3, 20_000), (20_000, 3), (1, 66_000), (30, 33_000)])
def test_images_that_are_too_large_are_scaled_with_a_warning(tmp_path, caplog, size):
    path = tmp_path / "out.mp4"
    image = plain(size, GREEN)
    (image if size[0] > size[1] else image.swapaxes(0, 1))[: max(size) // 2] = RED
    scaled = [max(1, round(side * 16_384 / max(size))) for side in size]
    with VideoFile(path) as video:
        video.write_image(image, 0.0)
        video.write_image(image, 1.0)
    first, second = decode(path)
    assert [first.height, first.width] == [side + side % 2 for side in scaled]
    decoded = second.to_ndarray(format="rgb24").astype(int)
    assert np.abs(decoded[0, 0] - RED).max() < 20
    (warning,) = caplog.messages
    assert f"out.mp4: images of {size[1]} x {size[0]} pixels are scaled to" in warning


def test_images_of_the_maximum_size_are_not_scaled(tmp_path, caplog):
    with VideoFile(tmp_path / "out.mp4") as video:
        video.write_image(plain((2, 16_384)), 0.0)
    (frame,) = decode(tmp_path / "out.mp4")
    assert (frame.height, frame.width) == (2, 16_384)
    assert caplog.messages == []


# Isolated outputs


def test_an_isolated_output_keeps_its_first_failure_and_writes_nothing_afterwards(tmp_path):
    good = opened(IsolatedOutput(ResultsFile(tmp_path / "good")))
    full = opened(IsolatedOutput(ResultsFile(tmp_path / "full")))
    failing = opened(IsolatedOutput(ResultsFile(tmp_path / "missing" / "file")))
    assert "no such folder" in str(failing.failure)
    for index in range(8):
        for output in (good, failing):
            output.write(make_result(index))
        with files_no_larger_than(1000):
            full.write(make_result(index))
    failure = full.failure
    assert "larger than it may be" in str(failure)
    for output in (good, full, failing):
        output.close()
    assert full.failure is failure
    assert good.failure is None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["full.part", "good"]
    assert len((tmp_path / "good").read_bytes().splitlines()) == 8
