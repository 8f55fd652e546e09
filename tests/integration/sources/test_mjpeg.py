"""Motion JPEG over HTTP: every way in which cameras separate their images."""

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


def pixels(number: int, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """A smooth picture, so that what JPEG loses is little, with a bar that tells the number."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    image = np.stack([200 * x, 200 * y, 100 + 50 * x * y], axis=-1)
    image[:, 8 * number : 8 * number + 8] = 240
    return image.astype(np.uint8)


def encoded(number: int, **options: object) -> bytes:
    into = io.BytesIO()
    Pillow.fromarray(pixels(number)).save(into, "JPEG", quality=92, **options)
    return into.getvalue()


def with_thumbnail(number: int) -> bytes:
    """As cameras write it: a whole JPEG within the first segment."""
    image, thumbnail = encoded(number), encoded(number + 1)
    body = b"Exif\0\0" + thumbnail
    return image[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + image[2:]


IMAGES = [
    encoded(0),
    encoded(1, progressive=True),
    with_thumbnail(2),
    encoded(3, restart_marker_blocks=2),
    encoded(4, comment=b"--frame\r\nContent-Length: 7\r\n\r\n\xff\xd8"),
    encoded(5).replace(b"\xff\xda", b"\xff\xff\xff\xda", 1),  # fill bytes before a marker
]


@dataclass(frozen=True)
class Spelling:
    """How a camera separates its images.

    Attributes:
        content_type: of the answer.
        boundary: that the content type names.
        join: makes the body.
    """

    content_type: str
    boundary: str
    join: Callable[[list[bytes]], bytes]


def parts(head: str, *, line: str = "--frame", end: str = "\r\n", after: str = "\r\n"):
    def join(images: list[bytes]) -> bytes:
        made = []
        for image in images:
            lines = [line, *head.format(len(image)).split("|")] if head else [line]
            made.append((end.join(lines) + end + end).encode() + image + after.encode())
        return b"".join(made)

    return join


REPLACE = "multipart/x-mixed-replace; boundary=frame"
TYPE, LENGTH = "Content-Type: image/jpeg", "Content-Length: {}"
SPELLINGS = {
    "usual": Spelling(REPLACE, "frame", parts(f"{TYPE}|{LENGTH}")),
    "jpg": Spelling(REPLACE, "frame", parts(f"Content-Type: image/jpg|{LENGTH}")),
    "parameter": Spelling(REPLACE, "frame", parts(f"{TYPE}; charset=utf-8|{LENGTH}")),
    "no type": Spelling(REPLACE, "frame", parts(LENGTH)),
    "no length": Spelling(REPLACE, "frame", parts(TYPE)),
    "no header": Spelling(REPLACE, "frame", parts("")),
    "wrong length": Spelling(REPLACE, "frame", parts(f"{TYPE}|Content-Length: 17")),
    "huge length": Spelling(REPLACE, "frame", parts(f"{TYPE}|Content-Length: 2000000000")),
    "no number": Spelling(REPLACE, "frame", parts(f"{TYPE}|Content-Length: many")),
    "small letters": Spelling(REPLACE, "frame", parts("content-type:image/jpeg|content-length:{}")),
    "more headers": Spelling(REPLACE, "frame", parts(f"X-Time: 1.5|{TYPE}|X-D8: \xd8|{LENGTH}")),
    "line feeds": Spelling(REPLACE, "frame", parts(f"{TYPE}|{LENGTH}", end="\n", after="\n")),
    "no line end behind": Spelling(REPLACE, "frame", parts(f"{TYPE}|{LENGTH}", after="")),
    "blank lines behind": Spelling(REPLACE, "frame", parts(TYPE, after="\r\n\r\n\r\n")),
    "quotes": Spelling(
        'Multipart/X-Mixed-Replace; Boundary="a b"', "a b", parts(TYPE, line="--a b")
    ),
    "dashes in the name": Spelling(
        "multipart/x-mixed-replace;boundary=--frame", "--frame", parts(TYPE)
    ),
    "more dashes": Spelling(
        "multipart/x-mixed-replace;boundary=--frame", "--frame", parts(TYPE, line="----frame")
    ),
    "another boundary": Spelling(REPLACE, "frame", parts(TYPE, line="--other")),
    "no boundary": Spelling("multipart/x-mixed-replace", "", parts(f"{TYPE}|{LENGTH}")),
    "mixed": Spelling("multipart/mixed; boundary=frame", "frame", parts(f"{TYPE}|{LENGTH}")),
    "no parts in multipart": Spelling(REPLACE, "frame", b"".join),
    "images alone": Spelling("image/jpeg", "", b"".join),
    "unknown bytes": Spelling("application/octet-stream", "", b"".join),
    "unknown parts": Spelling("text/plain", "", parts(f"{TYPE}|{LENGTH}")),
    "preamble": Spelling(
        REPLACE, "frame", lambda images: b"hello\r\n\r\n" + parts(f"{TYPE}|{LENGTH}")(images)
    ),
}


def cut(body: bytes, sizes: list[int]) -> Iterator[bytes]:
    """A body in pieces of these sizes, again and again."""
    at, turn = 0, 0
    while at < len(body):
        yield body[at : at + sizes[turn % len(sizes)]]
        at += sizes[turn % len(sizes)]
        turn += 1


@given(
    spelling=st.sampled_from(sorted(SPELLINGS)), sizes=st.lists(st.integers(20, 9000), min_size=1)
)
def test_images_are_found_byte_for_byte_wherever_they_are_cut(spelling, sizes) -> None:
    how = SPELLINGS[spelling]
    assert list(split_jpegs(cut(how.join(IMAGES), sizes), how.boundary)) == IMAGES


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_cameras_with_any_spelling_give_the_pictures_that_pillow_decodes(spelling) -> None:
    how = SPELLINGS[spelling]
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {how.content_type}\r\n\r\n".encode()

    def answer(connection) -> None:
        connection.sendall(head + how.join(IMAGES))

    with raw_camera(answer) as url:
        reader = start_reader(url, max_attempts=1)
        reader.wait_until(lambda: reader.error)
        reader.close()
    assert "the stream ended" in str(reader.error)
    assert len(reader.received) == len(IMAGES)
    for (_, frame), image in zip(reader.received, IMAGES, strict=True):
        truth = np.asarray(Pillow.open(io.BytesIO(image)).convert("RGB"), np.int16)
        assert np.abs(frame.image - truth).mean() < 2.5


def test_an_image_is_given_out_as_soon_as_its_last_byte_is_there() -> None:
    body = SPELLINGS["usual"].join(IMAGES[:1])
    came: list[bytes] = []

    def pieces() -> Iterator[bytes]:
        whole = body.index(END, len(body) - 8) + len(END)
        yield body[: whole - 1]
        assert came == []
        yield body[whole - 1 : whole]
        assert came == IMAGES[:1]

    for image in split_jpegs(pieces(), "frame"):
        came.append(image)  # noqa: PERF402 - pieces() looks at it in between


def test_a_second_image_in_a_part_is_left_out() -> None:
    both = [image + encoded(9) for image in IMAGES]
    for spelling in ("usual", "no length", "no boundary"):
        how = SPELLINGS[spelling]
        assert list(split_jpegs(iter([how.join(both)]), how.boundary)) == IMAGES


def test_one_boundary_and_then_images_alone_are_images_without_parts() -> None:
    many = [encoded(number % 8) for number in range(20)]
    body = SPELLINGS["usual"].join(many[:1]) + b"".join(many[1:])
    found = list(split_jpegs(iter([body]), "frame"))
    assert found[0] == many[0]
    assert found[-10:] == many[-10:]


@pytest.mark.parametrize("spelling", ["usual", "line feeds", "another boundary"])
def test_images_without_an_end_marker_end_where_the_next_part_begins(spelling) -> None:
    how = SPELLINGS[spelling]
    cropped = [image.removesuffix(END) for image in IMAGES]
    found = list(split_jpegs(iter([how.join([*cropped, IMAGES[0]])]), how.boundary))
    assert len(found) == len(IMAGES) + 1
    for image, crop in zip(found[:-1], cropped, strict=True):
        assert image.startswith(crop)
        assert len(image) - len(crop) == 0 or spelling == "another boundary"


def test_what_breaks_off_within_an_image_is_no_image() -> None:
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
def test_memory_is_bounded_whatever_comes_without_end(piece, monkeypatch) -> None:
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
def test_any_bytes_give_images_or_one_line(data) -> None:
    found = []
    try:
        found.extend(split_jpegs(iter(data), "frame"))
    except SourceError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most give images
    assert all(image.startswith(b"\xff\xd8\xff") for image in found)


@pytest.mark.parametrize(
    "content_type", [REPLACE, "image/jpeg", "video/mp4", "image/png", "video/x-flv"]
)
def test_a_camera_whose_picture_does_not_end_has_one_reason_each_time(
    content_type, monkeypatch
) -> None:
    begins = {
        "video/mp4": b"\0\0\0\x18ftypisom\0\0\0\0isomiso2" + b"\x7f\xff\xff\xf0mdat",
        "image/png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x40\0\0\0\x40\x08\2\0\0\0"
        b"\x25\x0b\xe6\x89\x7f\xff\xff\0IDAT",
        "video/x-flv": b"FLV\1\1\0\0\0\x09\0\0\0\0" + b"\x09\xff\xff\xf0\0\0\0\0\0\0\0",
    }
    monkeypatch.setattr(bytestream, "MAX_FRAME_BYTES", 2**20)
    monkeypatch.setattr(mjpeg, "MAX_FRAME_BYTES", 2**20)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n".encode()

    def answer(connection) -> None:
        connection.sendall(head + begins.get(content_type, b"--frame\r\n\r\n\xff\xd8\xff\xe0"))
        while True:
            connection.sendall(bytes(65536))

    with raw_camera(answer) as url:
        reader = start_reader(url, max_attempts=2)
        reader.wait_until(lambda: reader.error)
        reader.close()
    assert "in 1048576 bytes" in str(reader.error)
    assert "\n" not in str(reader.error)


@pytest.mark.slow
def test_attempts_at_an_image_without_end_do_not_add_up_in_memory(monkeypatch) -> None:
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
