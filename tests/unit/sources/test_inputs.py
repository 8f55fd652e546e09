"""Expansion of folders, globs and names to inputs, and assignment of output folders."""

import json
import os
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path, PurePath

import pytest
from support.commands import Run
from support.media import MEDIA
from support.still_images import encode_image, smooth_image

from streamseg.cli import main
from streamseg.config import SourceConfig, assign_source_names
from streamseg.errors import NoFramesError
from streamseg.protocol.encoding import escape_undecodable
from streamseg.sources import Input, assign_output_folders, find_inputs, open_source

pytestmark = pytest.mark.timeout(120)
JPEG = encode_image(smooth_image(40, 56), "JPEG")
FAST_MODEL = ("--model", "nanomask", "--weights", "none", "--set", "model.input_size=64")


def write_jpegs(folder, *names):
    """Write a JPEG under each of the names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)


def find_urls_and_folders(path, **options):
    return [(each.url, str(each.folder)) for each in find_inputs(str(path), **options)]


def assign_folders(inputs):
    names = assign_source_names([("", each.url) for each in inputs])
    return [str(each.folder) for each in assign_output_folders(inputs, names)]


def read_summaries(out):
    return {
        path.parent.relative_to(out).as_posix(): json.loads(path.read_bytes())
        for path in out.rglob("summary.json")
    }


def test_files_left_out_of_a_folder_are_counted(tmp_path):
    media = ("a.JPE", "b.jfif", "c.avif", "d.HEIC", "e.jp2", "f.dav", "g.F4V", "h.mts", "i.265")
    write_jpegs(
        tmp_path, *media, "x.txt", "y.TXT", "z.zip", "README", "clip.mp4.part", "a.b-c-d-e-f-g-h"
    )
    write_jpegs(
        tmp_path, "._f.dav", ".DS_Store", "Thumbs.db", "desktop.ini", "sub/a.jpg", "sub2/a.jpg"
    )
    os.mkfifo(tmp_path / "pipe.mp4")
    inputs = find_inputs(str(tmp_path))
    assert [Path(each.url).name for each in inputs] == [*media[5:], tmp_path.name]
    left_out = (
        f"{tmp_path}: left out: 4 hidden, 2 without an extension, 2 sub-folders, 2 .txt, 1 .part, "
        "1 neither file nor folder, 1 .zip (--recursive includes them)"
    )
    assert {each.remark for each in inputs} == {left_out}
    assert find_inputs(str(tmp_path / "[f-y].*"))[0].remark.endswith(": left out: 2 .txt")
    write_jpegs(tmp_path / "clean", "a.jpg", "b.mp4")
    assert {each.remark for each in find_inputs(str(tmp_path / "clean"))} == {""}


def test_folder_without_media_is_refused_with_extensions_and_left_out_files(tmp_path):
    write_jpegs(tmp_path, "a.txt", ".b.mp4", "Thumbs.db", "sub/a.mp4")
    with pytest.raises(
        NoFramesError, match=r"no media found; known are \.mp4.*\.png.*; left out: "
    ):
        find_inputs(str(tmp_path))
    with pytest.raises(NoFramesError, match=r"1 sub-folder \(--recursive includes them\)"):
        find_inputs(str(tmp_path))
    assert find_urls_and_folders(tmp_path, recursive=True) == [(str(tmp_path / "sub/a.mp4"), "sub")]


def test_hidden_file_is_read_if_named_explicitly(tmp_path):
    write_jpegs(tmp_path, ".a.jpg")
    assert find_urls_and_folders(tmp_path / ".a.jpg") == [(str(tmp_path / ".a.jpg"), ".")]
    (frame,) = open_source(SourceConfig(url=str(tmp_path / ".a.jpg"))).frames()
    assert frame.item == ".a.jpg"


def test_recursive_search_keeps_the_folder_layout(tmp_path):
    write_jpegs(
        tmp_path, "in/b.mp4", "in/1.jpg", "in/sub/b.mp4", "in/sub/deep/b.mkv", "in/sub/deep/2.jpg"
    )
    write_jpegs(tmp_path, "in/.hidden/c.mp4", "in/out/annotated.mp4", "in/empty/notes.txt")
    (tmp_path / "in/linked").symlink_to(tmp_path / "in/sub")
    root = tmp_path / "in"
    inputs = find_inputs(str(root), recursive=True, output=root / "out")
    assert [(each.url, str(each.folder)) for each in inputs] == [
        (str(root / "b.mp4"), "."),
        (str(root), "."),
        (str(root / "sub/b.mp4"), "sub"),
        (str(root / "sub/deep/b.mkv"), "sub/deep"),
        (str(root / "sub/deep"), "sub/deep"),
    ]
    assert assign_folders(inputs) == ["b", "in", "sub/b", "sub/deep/b", "sub/deep/deep"]
    assert inputs[0].remark == f"{root}: left out: 1 hidden, 1 .txt, 1 linked folder"


@pytest.mark.parametrize(
    ("urls", "folders"),
    [
        (["a/x.mp4", "b/x.mp4", "b/x.mkv"], ["x", "x-2", "x-3"]),
        (["a.mp4", "A.mp4", "a-2.mp4"], ["a", "A-2", "a-2-2"]),
        (["caf\u00e9.mp4", "cafe\u0301.mp4"], ["caf", "cafe"]),
        (
            ["\udcdf.mp4", "\udce0.mp4", "....mp4", "-.mp4"],
            ["source", "source-2", "source-3", "source-4"],
        ),
        ([f"{'x' * 200}{n}.mp4" for n in range(2)], ["x" * 64, "x" * 62 + "-2"]),
        (["a\nb.mp4", "a:b.mp4", "a b.mp4"], ["a-b", "a-b-2", "a-b-3"]),
    ],
)
def test_output_folders_are_unique(urls, folders):
    assert assign_folders([Input(url) for url in urls]) == folders


def test_source_names_are_unique_within_64_characters():
    names = assign_source_names([("", "x" * 100)] * 1100)
    assert len({name.casefold() for name in names}) == 1100
    assert max(map(len, names)) <= 64


def test_nested_output_folders_are_unique():
    inputs = [
        Input("in/sub.mp4"),
        Input("in/sub/a.mp4", PurePath("sub")),
        Input("in/sub/A.mkv", PurePath("sub")),
        Input("other/sub/a.mp4", PurePath("sub")),
        Input("in/sub/deep/b.mp4", PurePath("sub/deep")),
        Input("in/sub/deep.mp4", PurePath("sub")),
    ]
    folders = assign_folders(inputs)
    assert folders == ["sub-2", "sub/a", "sub/A-2", "sub/a-3", "sub/deep/b", "sub/deep-2"]


def test_images_of_equal_name_are_named_by_their_relative_path(tmp_path):
    write_jpegs(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg")
    items = [f.item for f in open_source(SourceConfig(url=str(tmp_path / "*" / "*.jpg"))).frames()]
    assert items == ["a/1.jpg", "b/1.jpg", "b/2.jpg"]


def test_file_names_of_any_encoding_are_written_as_utf8(streamseg: Run, tmp_path: Path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    video = (MEDIA / "one_frame.mp4").read_bytes()
    names = [
        b"Stra\xdfe.mp4",
        b"a\nb.mp4",
        b"-x.mp4",
        b"\xff.jpg",
        b"\xe6\x97\xa5.jpg",
        b"x" * 250 + b".jpg",
    ]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(video if name.endswith(b"mp4") else JPEG)
    result = streamseg("process", folder, "--out", os.fsdecode(b"out\xe9"), *FAST_MODEL)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    out = tmp_path / os.fsdecode(b"out\xe9")
    written = read_summaries(out)
    assert {Path(each["input"]).name for each in written.values()} == {
        "Stra%DFe.mp4",
        "a\nb.mp4",
        "-x.mp4",
        "caf%E9",
    }
    lines = (out / "caf" / "results.jsonl").read_bytes().decode().splitlines()
    assert {json.loads(line)["item"] for line in lines} == {
        "%FF.jpg",
        "\u65e5.jpg",
        "x" * 250 + ".jpg",
    }


def test_process_reports_files_left_out(streamseg: Run, tmp_path: Path):
    write_jpegs(tmp_path / "in", "a.jfif", "notes.txt", ".DS_Store", "sub/b.JPE")
    result = streamseg("process", "in", "--out", "out", "--recursive", *FAST_MODEL)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("in: left out: 1 hidden, 1 .txt\n") == 1
    written = read_summaries(tmp_path / "out")
    assert written.keys() == {"in", "sub/sub"}
    assert all("left out" in each["notes"][0] for each in written.values())


def test_ascii_terminal_gets_escapes(tmp_path: Path, monkeypatch):
    write_jpegs(tmp_path, "in/\u65e5.jpg", "in/\u65e5.txt")
    stdout, stderr = (TextIOWrapper(BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["process", "in", "--out", "\u51fa", *FAST_MODEL])
    assert not exit_info.value.code
    stdout.flush()
    assert b"in \\u51fa" in stdout.buffer.getvalue()


def test_undecodable_bytes_are_percent_encoded():
    assert escape_undecodable(os.fsdecode(b"caf\xe9 \xc3\xa9 \xff")) == "caf%E9 \u00e9 %FF"
    assert escape_undecodable("\ud800").isascii()
