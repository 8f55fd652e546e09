"""Fuzz targets that read files: recordings, images, weights, configs, datasets and tracks."""

from __future__ import annotations

import io
import itertools
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image as Pillow
from safetensors.torch import save as to_safetensors

from fuzzing.mutation import mutate_bytes, mutate_text
from fuzzing.trial import Seed, Target
from streamseg.config import SourceConfig, load, override, validate
from streamseg.config.training import (
    CocoData,
    DataConfig,
    load_evaluation_config,
    load_training_config,
)
from streamseg.datasets.validation import find_problems
from streamseg.evaluation.track_files import read_tracks
from streamseg.models.weights.files import read as read_weights
from streamseg.sources import open_source

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "tests" / "media"
MAX_PIXELS = 1_000_000
"""Limit on frames while fuzzing, so that the limit on memory says something."""
MAX_FRAMES = 200
_LARGEST_SEED = 160_000
_IMAGES = (".jpg", ".png", ".bmp", ".webp", ".tif", ".gif", ".avif")
_TEXT = (".txt", ".yaml", ".json", ".sdp", ".m3u8", ".ffconcat")

_PLAYLISTS = {
    "list.ffconcat": b"ffconcat version 1.0\nfile '@CANARY_FILE@'\nduration 1\n",
    "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n@CANARY_FILE@\n"
    b"#EXTINF:2,\nhttp://@CANARY@/a.ts\n#EXT-X-ENDLIST\n",
    "camera.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.2\ns=x\nc=IN IP4 127.0.0.2\nt=0 0\n"
    b"m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "stream.mpd": b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
    b'type="static" mediaPresentationDuration="PT4S"><Period><AdaptationSet '
    b'mimeType="video/mp2t"><Representation id="1" bandwidth="1"><BaseURL>http://@CANARY@/a.ts'
    b"</BaseURL><SegmentBase/></Representation></AdaptationSet></Period></MPD>\n",
}
_PLAYLIST_TOKENS = (
    *(b"@CANARY_FILE@", b"http://@CANARY@/a.ts", b"file://@CANARY_FILE@", b"concat:@CANARY_FILE@"),
    *(b"subfile,,start,0,end,9999,,:@CANARY_FILE@", b"tcp://@CANARY@", b"udp://@CANARY@"),
    *(b"#EXT-X-DISCONTINUITY", b"#EXTINF:1,", b'#EXT-X-MAP:URI="@CANARY_FILE@"', b"option x y"),
)


def _recordings() -> Sequence[Seed]:
    files = sorted(f for f in MEDIA.iterdir() if f.suffix not in (*_IMAGES, ".md", ".srt"))
    found = [Seed(f.name, f.read_bytes()) for f in files if f.stat().st_size < _LARGEST_SEED]
    disguised = [Seed(f"{name}.mp4", data) for name, data in _PLAYLISTS.items()]
    return [*found, *disguised, *(Seed(name, data) for name, data in _PLAYLISTS.items())]


def _mutate_recording(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if data in _PLAYLISTS.values():
        return mutate_text(random, data, others, _PLAYLIST_TOKENS)
    return mutate_bytes(random, data, others)


def _read_frames(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.write_bytes(data)
    start = 1.0 if len(data) % 4 == 0 else 0.0  # the other way into a recording
    source = open_source(SourceConfig(url=str(path), max_pixels=MAX_PIXELS, start=start))
    for frame in itertools.islice(source.frames(), MAX_FRAMES):
        assert frame.image.shape[0] * frame.image.shape[1] <= MAX_PIXELS
        assert frame.pts == frame.pts, "the time is not a number"


def _images() -> Sequence[Seed]:
    found = [Seed(f.name, f.read_bytes()) for f in MEDIA.iterdir() if f.suffix in _IMAGES]
    drawn = np.arange(40 * 52 * 3, dtype=np.uint32).reshape(40, 52, 3).astype(np.uint8)
    image = Pillow.fromarray(drawn)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    ways: list[tuple[str, Pillow.Image, dict[str, object]]] = [
        ("a.jpg", image, {"format": "JPEG", "exif": exif}),
        ("b.jpg", image.convert("L"), {"format": "JPEG", "progressive": True}),
        ("c.jpg", image.convert("CMYK"), {"format": "JPEG"}),
        ("a.png", image.convert("P"), {"format": "PNG"}),
        ("b.png", image, {"format": "PNG", "exif": exif}),
        ("a.bmp", image, {"format": "BMP"}),
        ("a.webp", image, {"format": "WEBP", "exif": exif.tobytes()}),
        ("a.tif", image, {"format": "TIFF"}),
        ("b.tif", image, {"format": "TIFF", "compression": "jpeg"}),
        ("c.tif", image, {"format": "TIFF", "compression": "tiff_lzw"}),
        ("d.tif", image, {"format": "TIFF", "save_all": True, "append_images": [image]}),
        ("a.avif", image, {"format": "AVIF"}),
        ("a.gif", image, {"format": "GIF", "save_all": True, "append_images": [image]}),
        ("a.jp2", image, {"format": "JPEG2000"}),
    ]
    for name, drawing, options in ways:
        out = io.BytesIO()
        drawing.save(out, **options)  # type: ignore[arg-type]
        found.append(Seed(name, out.getvalue()))
    return sorted(found, key=lambda seed: seed.name)


def _weights() -> Sequence[Seed]:
    state = {f"layer.{n}.weight": torch.full((3, n + 1), float(n)) for n in range(4)}
    state["half"], state["long"] = torch.zeros(2, dtype=torch.float16), torch.arange(3)
    made: list[Seed] = [Seed("a.safetensors", to_safetensors(state, {"format": "pt"}))]
    for name, content, zipped in (
        ("a.pt", state, True),
        ("b.pt", {"model": state, "epoch": 3, "args": {"lr": 0.1}}, True),
        ("c.pt", state, False),
    ):
        out = io.BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=zipped)
        made.append(Seed(name, out.getvalue()))
    arrays = {"model": {name: tensor.numpy() for name, tensor in state.items()}, "a": "b"}
    made += [Seed(f"p{n}.pkl", pickle.dumps(arrays, n)) for n in (2, 3, 4, 5)]
    return made


def _load_weights(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.write_bytes(data)
    read_weights(path)


def _configs() -> Sequence[Seed]:
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    return [Seed(f"{file.parent.name}-{file.name}", file.read_bytes()) for file in files]


def _mutate_config(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return mutate_text(random, data, others, _CONFIG_TOKENS)


_CONFIG_TOKENS = (
    *(b"&a [*a]", b"&a", b"*a", b"<<: *a", b"[", b"{", b"? ", b"- ", b": ", b"!!python/name:os"),
    *(b"!!binary a", b"!!timestamp 2020-01-01", b"2020-99-99", b"1e999", b".nan", b"~", b"\x00"),
    *(b"\xff", b"\t", b"url: rtsp://u:secret@h/", b"name: ..", b"sources:", b"model:", b"|", b"%"),
    *(b'"', b"'", b"[[[[[[[[", b"{a: {a: {a: ", b"=", b"!!set {a}", b"0o7", b"1:30"),
)


def _validate_config(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.write_bytes(data)
    if name.startswith("train-"):
        load_training_config(path, [])
    elif name.startswith("eval-"):
        load_evaluation_config(path, [])
    else:
        raw = load(path)
        override(raw, [data[:40].decode(errors="replace")] if b"=" in data[:40] else [])
        validate(raw, str(path))


def _datasets() -> Sequence[Seed]:
    polygon = [[1, 1, 20, 1, 20, 20, 1, 20]]
    content = {
        "info": {},
        "images": [
            {"id": 1, "file_name": "a.png", "width": 32, "height": 24},
            {"id": 2, "file_name": "b.png", "width": 32, "height": 24},
        ],
        "categories": [
            {"id": 1, "name": "cat", "supercategory": "animal"},
            {"id": 7, "name": "dog", "supercategory": "animal"},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 361.0,
             "bbox": [1, 1, 19, 19], "segmentation": polygon},
            {"id": 2, "image_id": 1, "category_id": 7, "iscrowd": 1, "area": 100,
             "bbox": [0, 0, 10, 10], "segmentation": {"size": [24, 32], "counts": [0, 10, 758]}},
            {"id": 3, "image_id": 2, "category_id": 7, "iscrowd": 0, "area": 4,
             "bbox": [0, 0, 2, 2], "segmentation": {"size": [24, 32], "counts": "02f1"}},
        ],
    }  # fmt: skip
    return [
        Seed("indented.json", json.dumps(content, indent=1).encode()),
        Seed("plain.json", json.dumps(content).encode()),
    ]


def _mutate_dataset(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return mutate_text(random, data, others, _JSON_TOKENS)


_JSON_TOKENS = (
    *(b"null", b"true", b'""', b'"1"', b"[]", b"{}", b"NaN", b"1.5", b"-1", b"1e400", b"[[[["),
    *(b'"id": 1,', b'"../../x.png"', b'"size": [1, 99999999999]', b'"\\u0000"', b'"counts": "~~"'),
    *(b'"iscrowd": null,', b'"bbox": [0,0,0,0],', b'"segmentation": [],', b'{"a":' * 50),
)


def _check_dataset(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    for image in ("a.png", "b.png"):
        Pillow.new("RGB", (32, 24)).save(folder / image)
    find_problems(DataConfig(val=(CocoData(images=".", annotations=name),)), folder)


def _tracks() -> Sequence[Seed]:
    return [
        Seed("mot.txt", b"1,1,10,20,30,40,1,1,1\n1,2,50,20,30,40,0.9,1,1\n2,1,11,20,30,40,1,1,1\n"),
        Seed("world.txt", b"1,1,10,20,30,40,1,-1,-1,-1\n2,1,10.5,20,30,40,1,-1,-1,-1\n"),
        Seed("mots.txt", b"0 1001 1 24 32 02f1\n1 1001 1 24 32 02f1\n1 2001 2 24 32 92f1\n"),
    ]


def _mutate_tracks(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return mutate_text(
        random, data, others, (b",", b" ", b"\t", b"-1", b"nan", b"1e9", b"\xef\xbb")
    )


def _read_tracks(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.write_bytes(data)
    read_tracks(path, {"car": 1, "pedestrian": 2})


TARGETS = (
    Target("recording", _recordings, _mutate_recording, _read_frames, memory_mib=400, weight=30),
    Target("image", _images, mutate_bytes, _read_frames, memory_mib=200, weight=30),
    Target("weights", _weights, mutate_bytes, _load_weights, memory_mib=200, weight=15),
    Target("config", _configs, _mutate_config, _validate_config, memory_mib=200, weight=15),
    Target("dataset", _datasets, _mutate_dataset, _check_dataset, memory_mib=200, weight=10),
    Target("tracks", _tracks, _mutate_tracks, _read_tracks, memory_mib=100, weight=5),
)
