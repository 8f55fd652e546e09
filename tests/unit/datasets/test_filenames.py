"""Resolution of file names in a dataset's JSON."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from support.annotations import (
    find_dataset_problems,
    make_coco_content,
    write_coco,
    write_image,
    write_json,
)

from streamseg.config.training import CocoData
from streamseg.datasets import load_image, open_dataset
from streamseg.datasets.filenames import FileFinder
from streamseg.datasets.problems import Fault
from streamseg.errors import DataError

COMPOSED = unicodedata.normalize("NFC", "café Ä.jpg")
DECOMPOSED = unicodedata.normalize("NFD", "café Ä.jpg")


def find(folder: Path, name: str, *existing: str) -> str | Fault:
    """Return the path that a name resolves to among existing files, relative to their folder."""
    for each in existing:
        path = folder / "root" / "images" / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    root = folder / "root"
    found = FileFinder(root / "images", root).find([name])[name]
    return found if isinstance(found, Fault) else str(found.relative_to(root / "images"))


@pytest.mark.parametrize(
    ("name", "existing", "expected"),
    [
        ("1.jpg", ["1.jpg", "a/1.jpg"], "1.jpg"),
        ("a\\1.jpg", ["1.jpg", "a/1.jpg"], "a/1.jpg"),
        ("a\\1.jpg", ["a\\1.jpg", "a/1.jpg"], "a\\1.jpg"),
        (".\\a\\b\\1.jpg", ["a/b/1.jpg"], "a/b/1.jpg"),
        ("./a/./1.jpg", ["a/1.jpg"], "a/./1.jpg"),
        (COMPOSED, [DECOMPOSED], DECOMPOSED),
        (DECOMPOSED, [COMPOSED], COMPOSED),
        (DECOMPOSED, [COMPOSED, DECOMPOSED], DECOMPOSED),
        ("A/IMG_1.JPG", ["a/img_1.jpg"], "a/img_1.jpg"),
        ("IMG_1.JPG", ["img_1.JPG", "IMG_1.jpg", "a/IMG_1.JPG"], "a/IMG_1.JPG"),
        ("C:\\Users\\bob\\data\\1.jpg", ["1.jpg"], "1.jpg"),
        ("/home/bob/set/train/1.jpg", ["train/1.jpg", "val/1.jpg"], "train/1.jpg"),
        ("/home/bob/images/1.jpg", ["deep/down/1.jpg"], "deep/down/1.jpg"),
        ("my%20picture%231.jpg", ["my picture#1.jpg"], "my picture#1.jpg"),
        ("100%.jpg", ["100%.jpg"], "100%.jpg"),
        ("https://host/bucket/1.jpg?X-Sign=a%2Fb", ["bucket/1.jpg"], "bucket/1.jpg"),
        ("/data/local-files/?d=set/1.jpg", ["set/1.jpg"], "set/1.jpg"),
        ("images/1.jpg", ["1.jpg"], "1.jpg"),
        ("1.jpg", ["a/1.jpg"], "a/1.jpg"),
        ("../../elsewhere/1.jpg", ["1.jpg"], "1.jpg"),
    ],
)
def test_name_resolves_to_the_best_match(
    tmp_path: Path, name: str, existing: list[str], expected: str
):
    found = find(tmp_path, name, *existing)
    assert not isinstance(found, Fault), found
    assert Path(found) == Path(expected)


@pytest.mark.parametrize(
    ("name", "existing", "reason"),
    [
        ("1.jpg", ["a/1.jpg", "b/1.jpg"], "file name fits several files"),
        ("c/1.jpg", ["a/1.jpg", "b/1.jpg"], "file name fits several files"),
        ("Img.jpg", ["img.jpg", "IMG.jpg"], "file name fits several files"),
        ("2.jpg", ["1.jpg", "2.png"], "file is missing"),
        ("../../secret.jpg", ["1.jpg"], "file outside of the dataset's folder"),
        ("/etc/passwd", ["1.jpg"], "file outside of the dataset's folder"),
    ],
)
def test_ambiguous_missing_and_outside_names_are_faults(
    tmp_path: Path, name: str, existing: list[str], reason: str
):
    (tmp_path / "secret.jpg").touch()
    found = find(tmp_path, name, *existing)
    assert isinstance(found, Fault)
    assert found.reason == reason


def test_names_may_lead_to_files_below_the_root_only(tmp_path: Path):
    other = tmp_path / "root" / "other"
    other.mkdir(parents=True)
    (other / "1.jpg").touch()
    (tmp_path / "root" / "images").mkdir()
    finder = FileFinder(tmp_path / "root" / "images", tmp_path / "root")
    assert finder.find(["../other/1.jpg"])["../other/1.jpg"] == (
        tmp_path / "root" / "images" / "../other/1.jpg"
    )
    finder_without_root = FileFinder(tmp_path / "root" / "images", tmp_path / "root" / "images")
    assert isinstance(finder_without_root.find(["../other/1.jpg"])["../other/1.jpg"], Fault)


def test_two_names_never_resolve_to_one_file(tmp_path: Path):
    (tmp_path / "1.jpg").touch()
    (tmp_path / "2.jpg").touch()
    found = FileFinder(tmp_path, tmp_path).find(["train\\1.jpg", "val\\1.jpg", "2.jpg", "x/2.jpg"])
    assert found["2.jpg"] == tmp_path / "2.jpg"
    assert found["x/2.jpg"].reason == "file is missing"  # "2.jpg" is exactly that file
    assert found["val\\1.jpg"].reason == found["train\\1.jpg"].reason
    assert found["val\\1.jpg"].reason == "several file names fit one file"


def test_dataset_with_file_names_of_another_system(tmp_path: Path):
    content = make_coco_content()
    config = write_coco(tmp_path, content)
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / DECOMPOSED)
    write_image(tmp_path / "images" / "sub" / "b.jpg")
    (tmp_path / "images" / "b.jpg").unlink()
    content["images"][0]["file_name"] = f"D:\\set\\{COMPOSED}"
    content["images"][1]["file_name"] = "SUB\\b.JPG"
    write_json(tmp_path / "set.json", content)
    dataset = open_dataset(config, tmp_path)
    assert [load_image(image).shape for image in dataset.images] == [(16, 20, 3)] * 3
    assert find_dataset_problems(config, tmp_path) == []


def test_folder_without_any_of_the_images_raises(tmp_path: Path):
    config = write_coco(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError) as error:
        open_dataset(CocoData(images="other", annotations=config.annotations), tmp_path, "skip")
    assert str(error.value) == (
        f"set: none of its 3 images is in {tmp_path}/other, the first is 'a.png': set images and "
        "data.root so that it is there"
    )
