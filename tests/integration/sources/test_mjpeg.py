"""Motion JPEG over HTTP: the formats of cameras, incomplete images and memory limits."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from support.cameras import raw_camera
from support.live_sources import start_reader
from support.processes import read_resident_memory

from streamseg.errors import SourceError
from streamseg.sources import bytestream, live, mjpeg
from streamseg.sources.mjpeg import split_jpegs

pytestmark = pytest.mark.timeout(60)
END = b"\xff\xd9"


def make_image(number: int, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """Return a smooth image, which JPEG changes little, with a bar at a position for ``number``."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    image = np.stack([200 * x, 200 * y, 100 + 50 * x * y], axis=-1)
    image[:, 8 * number : 8 * number + 8] = 240
    return image.astype(np.uint8)


def encode_jpeg(number: int, **options: object) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(make_image(number)).save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def encode_jpeg_with_thumbnail(number: int) -> bytes:
    """Encode a JPEG whose first segment contains another JPEG, as cameras write it."""
    image, thumbnail = encode_jpeg(number), encode_jpeg(number + 1)
    body = b"Exif\0\0" + thumbnail
    return image[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + image[2:]


IMAGES = [
    encode_jpeg(0),
    encode_jpeg(1, progressive=True),
    encode_jpeg_with_thumbnail(2),
    encode_jpeg(3, restart_marker_blocks=2),
    encode_jpeg(4, comment=b"--frame\r\nContent-Length: 7\r\n\r\n\xff\xd8"),
    encode_jpeg(5).replace(b"\xff\xda", b"\xff\xff\xff\xda", 1),  # fill bytes before a marker
]


@dataclass(frozen=True)
class StreamFormat:
    """Format in which a camera separates its images.

    Attributes:
        content_type: content type of the response.
        boundary: boundary that the content type declares.
        join: function that joins images to a body.
    """

    content_type: str
    boundary: str
    join: Callable[[list[bytes]], bytes]


def join_parts(head: str, *, line: str = "--frame", end: str = "\r\n", after: str = "\r\n"):
    def join(images: list[bytes]) -> bytes:
        parts = []
        for image in images:
            lines = [line, *head.format(len(image)).split("|")] if head else [line]
            parts.append((end.join(lines) + end + end).encode() + image + after.encode())
        return b"".join(parts)

    return join


REPLACE = "multipart/x-mixed-replace; boundary=frame"
TYPE, LENGTH = "Content-Type: image/jpeg", "Content-Length: {}"
FORMATS = {
    "usual": StreamFormat(REPLACE, "frame", join_parts(f"{TYPE}|{LENGTH}")),
    "jpg": StreamFormat(REPLACE, "frame", join_parts(f"Content-Type: image/jpg|{LENGTH}")),
    "parameter": StreamFormat(REPLACE, "frame", join_parts(f"{TYPE}; charset=utf-8|{LENGTH}")),
    "no type": StreamFormat(REPLACE, "frame", join_parts(LENGTH)),
    "no length": StreamFormat(REPLACE, "frame", join_parts(TYPE)),
    "no header": StreamFormat(REPLACE, "frame", join_parts("")),
    "wrong length": StreamFormat(REPLACE, "frame", join_parts(f"{TYPE}|Content-Length: 17")),
    "huge length": StreamFormat(REPLACE, "frame", join_parts(f"{TYPE}|Content-Length: 2000000000")),
    "no number": StreamFormat(REPLACE, "frame", join_parts(f"{TYPE}|Content-Length: many")),
    "small letters": StreamFormat(
        REPLACE, "frame", join_parts("content-type:image/jpeg|content-length:{}")
    ),
    "more headers": StreamFormat(
        REPLACE, "frame", join_parts(f"X-Time: 1.5|{TYPE}|X-D8: \xd8|{LENGTH}")
    ),
    "line feeds": StreamFormat(
        REPLACE, "frame", join_parts(f"{TYPE}|{LENGTH}", end="\n", after="\n")
    ),
    "no line end after an image": StreamFormat(
        REPLACE, "frame", join_parts(f"{TYPE}|{LENGTH}", after="")
    ),
    "blank lines after an image": StreamFormat(
        REPLACE, "frame", join_parts(TYPE, after="\r\n\r\n\r\n")
    ),
    "quotes": StreamFormat(
        'Multipart/X-Mixed-Replace; Boundary="a b"', "a b", join_parts(TYPE, line="--a b")
    ),
    "dashes in the name": StreamFormat(
        "multipart/x-mixed-replace;boundary=--frame", "--frame", join_parts(TYPE)
    ),
    "more dashes": StreamFormat(
        "multipart/x-mixed-replace;boundary=--frame", "--frame", join_parts(TYPE, line="----frame")
    ),
    "another boundary": StreamFormat(REPLACE, "frame", join_parts(TYPE, line="--other")),
    "no boundary": StreamFormat("multipart/x-mixed-replace", "", join_parts(f"{TYPE}|{LENGTH}")),
    "mixed": StreamFormat(
        "multipart/mixed; boundary=frame", "frame", join_parts(f"{TYPE}|{LENGTH}")
    ),
    "no parts in multipart": StreamFormat(REPLACE, "frame", b"".join),
    "images alone": StreamFormat("image/jpeg", "", b"".join),
    "unknown bytes": StreamFormat("application/octet-stream", "", b"".join),
    "unknown parts": StreamFormat("text/plain", "", join_parts(f"{TYPE}|{LENGTH}")),
    "preamble": StreamFormat(
        REPLACE, "frame", lambda images: b"hello\r\n\r\n" + join_parts(f"{TYPE}|{LENGTH}")(images)
    ),
}


def split(body: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Yield pieces of a body with the given sizes, repeatedly."""
    offset, turn = 0, 0
    while offset < len(body):
        yield body[offset : offset + sizes[turn % len(sizes)]]
        offset += sizes[turn % len(sizes)]
        turn += 1


@given(name=st.sampled_from(sorted(FORMATS)), sizes=st.lists(st.integers(20, 9000), min_size=1))
def test_images_are_extracted_for_any_chunk_sizes(name, sizes) -> None:
    stream_format = FORMATS[name]
    assert (
        list(split_jpegs(split(stream_format.join(IMAGES), sizes), stream_format.boundary))
        == IMAGES
    )


@pytest.mark.parametrize("name", FORMATS)
def test_decoded_images_equal_those_of_pillow_in_each_format(name) -> None:
    stream_format = FORMATS[name]
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {stream_format.content_type}\r\n\r\n".encode()

    def answer(connection) -> None:
        connection.sendall(head + stream_format.join(IMAGES))

    with raw_camera(answer) as url:
        reader = start_reader(url, max_attempts=1)
        reader.wait_until(lambda: reader.error)
        reader.close()
    assert "the stream ended" in str(reader.error)
    assert len(reader.received) == len(IMAGES)
    for (_, frame), image in zip(reader.received, IMAGES, strict=True):
        expected = np.asarray(Pillow.open(io.BytesIO(image)).convert("RGB"), np.int16)
        assert np.abs(frame.image - expected).mean() < 2.5


def test_image_is_returned_as_soon_as_it_is_complete() -> None:
    body = FORMATS["usual"].join(IMAGES[:1])
    images: list[bytes] = []

    def pieces() -> Iterator[bytes]:
        end = body.index(END, len(body) - 8) + len(END)
        yield body[: end - 1]
        assert images == []
        yield body[end - 1 : end]
        assert images == IMAGES[:1]

    for image in split_jpegs(pieces(), "frame"):
        images.append(image)  # noqa: PERF402 - pieces() checks the list in between


def test_second_image_of_a_part_is_ignored() -> None:
    both = [image + encode_jpeg(9) for image in IMAGES]
    for name in ("usual", "no length", "no boundary"):
        stream_format = FORMATS[name]
        assert list(split_jpegs(iter([stream_format.join(both)]), stream_format.boundary)) == IMAGES


def test_images_after_a_single_boundary_are_read_without_parts() -> None:
    images = [encode_jpeg(number % 8) for number in range(20)]
    body = FORMATS["usual"].join(images[:1]) + b"".join(images[1:])
    found = list(split_jpegs(iter([body]), "frame"))
    assert found[0] == images[0]
    assert found[-10:] == images[-10:]


@pytest.mark.parametrize("name", ["usual", "line feeds", "another boundary"])
def test_image_without_an_end_marker_ends_at_the_next_part(name) -> None:
    stream_format = FORMATS[name]
    cropped = [image.removesuffix(END) for image in IMAGES]
    found = list(
        split_jpegs(iter([stream_format.join([*cropped, IMAGES[0]])]), stream_format.boundary)
    )
    assert len(found) == len(IMAGES) + 1
    for image, crop in zip(found[:-1], cropped, strict=True):
        assert image.startswith(crop)
        assert len(image) - len(crop) == 0 or name == "another boundary"


def test_incomplete_image_is_an_error() -> None:
    with pytest.raises(SourceError, match="middle of an image"):
        list(split_jpegs(iter([IMAGES[0][:-10]]), ""))


@pytest.mark.parametrize(
    "piece",
    [
        bytes(65536),
        b"\xff" * 65536,
        IMAGES[0][:500],
        b"text\r\n" * 999,
        b"\xff\xd8\xff\xfe\xff\xff",
    ],
)
def test_memory_is_limited_for_images_without_end(piece, monkeypatch) -> None:
    monkeypatch.setattr(mjpeg, "MAX_FRAME_BYTES", 2**20)
    read = 0

    def pieces() -> Iterator[bytes]:
        nonlocal read
        yield IMAGES[0] + b"\xff\xd8\xff\xe0\x00\x04ab"
        while True:
            read += len(piece)
            yield piece

    with pytest.raises(SourceError, match="no complete image in 1048576 bytes"):
        list(split_jpegs(pieces(), "frame"))
    assert read < 2**22


@given(
    data=st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.sampled_from([*IMAGES, b"--frame\r\n", b"\xff\xd8\xff", END, b"\xff\xda\0\2"]),
        )
    )
)
def test_arbitrary_bytes_give_images_or_an_error_of_one_line(data) -> None:
    found = []
    try:
        found.extend(split_jpegs(iter(data), "frame"))
    except SourceError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most give images
    assert all(image.startswith(b"\xff\xd8\xff") for image in found)


@pytest.mark.parametrize(
    "content_type", [REPLACE, "image/jpeg", "video/mp4", "image/png", "video/x-flv"]
)
def test_images_without_end_have_an_error_of_one_line(content_type, monkeypatch) -> None:
    headers = {
        "video/mp4": b"\0\0\0\x18ftypisom\0\0\0\0isomiso2" + b"\x7f\xff\xff\xf0mdat",
        "image/png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x40\0\0\0\x40\x08\2\0\0\0"
        b"\x25\x0b\xe6\x89\x7f\xff\xff\0IDAT",
        "video/x-flv": b"FLV\1\1\0\0\0\x09\0\0\0\0" + b"\x09\xff\xff\xf0\0\0\0\0\0\0\0",
    }
    monkeypatch.setattr(bytestream, "MAX_FRAME_BYTES", 2**20)
    monkeypatch.setattr(mjpeg, "MAX_FRAME_BYTES", 2**20)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n".encode()

    def answer(connection) -> None:
        connection.sendall(head + headers.get(content_type, b"--frame\r\n\r\n\xff\xd8\xff\xe0"))
        while True:
            connection.sendall(bytes(65536))

    with raw_camera(answer) as url:
        reader = start_reader(url, max_attempts=2)
        reader.wait_until(lambda: reader.error)
        reader.close()
    assert "in 1048576 bytes" in str(reader.error)
    assert "\n" not in str(reader.error)


@pytest.mark.slow
def test_attempts_to_read_images_without_end_leak_no_memory(monkeypatch) -> None:
    monkeypatch.setattr(live, "MAX_DELAY", 0.05)
    peaks = [read_resident_memory()]

    def answer(connection) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n")
        connection.sendall(b"\xff\xd8\xff\xe0\x00\x04ab\xff\xda\0\2")
        while True:
            connection.sendall(b"\x55" * 65536)
            peaks.append(read_resident_memory())

    with raw_camera(answer) as url:
        reader = start_reader(url, max_attempts=8)
        reader.wait_until(lambda: reader.error, within=40)
        reader.close()
    assert max(peaks) - peaks[0] < 2.5 * mjpeg.MAX_FRAME_BYTES
