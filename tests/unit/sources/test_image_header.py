"""Headers of image files: whose orientation counts, which size, and how many images there are."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.still_images import encoded, exif, scene, strips, tiff

from streamseg.config import SourceConfig
from streamseg.sources import open_source
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_image, read_orientation, read_still

pytestmark = pytest.mark.timeout(60)
PIXELS = scene(40, 56)


def saved(tmp_path, data, name="a.jpg"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def jpeg(orientation=None, pixels=PIXELS, **options):
    if orientation is not None:
        options["exif"] = b"Exif\0\0" + exif(orientation)
    return encoded(pixels, "JPEG", quality=95, subsampling=0, **options)


def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def with_segments(data, *segments):
    """A JPEG with more segments behind its start."""
    return data[:2] + b"".join(segments) + data[2:]


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("first", [None, 1, 3, 6])
@pytest.mark.parametrize("second", [None, 1, 6, 8])
@pytest.mark.parametrize("between", [b"", bytes(100)])
def test_a_second_jpeg_behind_the_first_has_no_say(tmp_path, first, second, between):
    path = saved(tmp_path, jpeg(first) + between + jpeg(second, scene(40, 56, 1)))
    assert read_orientation(path, 10**6) == (first or 1)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.abs(read_image(path, 10**6).astype(int) - expected).max() <= 4
    assert read_still(path, 10**6).header.images == 2


@pytest.mark.parametrize(
    "stranger",
    [
        segment(0xFE, b"Exif\0\0" + exif(6)),  # a comment
        segment(0xED, jpeg(6)[:60]),  # of an image editor
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"Exif\0\0" + exif(6)),
        segment(0xE2, jpeg(8)),  # a whole image in a segment
    ],
)
@pytest.mark.parametrize("own", [None, 3])
def test_what_lies_in_other_segments_has_no_say(tmp_path, stranger, own):
    path = saved(tmp_path, with_segments(jpeg(own), stranger))
    assert read_orientation(path, 10**6) == (own or 1)
    assert read_still(path, 10**6).header.images == 1


def test_a_thumbnail_s_orientation_has_no_say(tmp_path):
    own = exif(3)
    thumbnail = exif(6)[8:]  # a second directory, as EXIF links it
    linked = own[:-4] + struct.pack("<I", len(own)) + thumbnail
    path = saved(tmp_path, jpeg(exif=b"Exif\0\0" + linked + jpeg(8)))
    assert read_orientation(path, 10**6) == 3


@pytest.mark.parametrize("orientation", [0, 9, 255])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_an_orientation_that_is_none_is_upright(tmp_path, orientation, kind):
    path = saved(tmp_path, jpeg(exif=b"Exif\0\0" + exif(orientation, ">", kind)))
    assert read_orientation(path, 10**6) == 1
    assert read_image(path, 10**6).shape == PIXELS.shape


@pytest.mark.parametrize("cut", range(0, 22, 3))
def test_damaged_exif_is_upright(tmp_path, cut):
    path = saved(tmp_path, jpeg(exif=b"Exif\0\0" + exif(6)[:cut]))
    assert read_orientation(path, 10**6) == 1
    assert read_image(path, 10**6).shape == PIXELS.shape


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_eight_orientations_in_both_byte_orders(tmp_path, orientation, order):
    block = exif(orientation, order)
    png = encoded(PIXELS, "PNG")
    end = len(png) - 12
    files = {
        "a.jpg": jpeg(exif=b"Exif\0\0" + block),
        "a.webp": encoded(PIXELS, "WEBP", lossless=True, exif=block),
        "b.webp": encoded(PIXELS, "WEBP", lossless=True, exif=b"Exif\0\0" + block),
        "a.png": png[:33] + chunk(b"eXIf", block) + png[33:],
        "b.png": png[:end] + chunk(b"eXIf", block) + png[end:],
        "c.png": png[:33]
        + chunk(b"tEXt", b"x\0eXIf" + exif(9 - orientation))
        + png[33:end]
        + chunk(b"eXIf", block)
        + png[end:]
        + chunk(b"eXIf", exif(9 - orientation)),
    }
    turned = Image.fromarray(PIXELS)
    turned.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(turned)).astype(int)
    for name, data in files.items():
        image = read_image(saved(tmp_path, data, name), 10**6)
        assert image.shape == expected.shape, name
        assert np.abs(image - expected).max() <= (12 if name == "a.jpg" else 0), name


def bmp(pixels, header, *, depth=24, compression=0, top_down=False, masks=b"", palette=b""):
    """A bitmap; ``pixels`` are the rows as stored, padded, from the bottom unless ``top_down``."""
    height, width = PIXELS.shape[:2]
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, depth)
    else:
        info = struct.pack(
            "<IiiHHIIiiII",
            40,
            width,
            -height if top_down else height,
            1,
            depth,
            compression,
            len(pixels),
            0,
            0,
            len(palette) // 4,
            0,
        )
        info = (struct.pack("<I", header) + info[4:])[:header].ljust(header, b"\0")
        if header > 40:
            info = info[:40] + masks + info[40 + len(masks) :]
            masks = b""
    offset = 14 + len(info) + len(masks) + len(palette)
    head = b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset)
    return head + info + masks + palette + pixels


def rows(samples):
    """Rows from the bottom, each padded to four bytes."""
    return b"".join(row.tobytes().ljust(-(-row.nbytes // 4) * 4, b"\0") for row in samples[::-1])


@pytest.mark.parametrize("header", [12, 40, 64, 108, 124])
def test_bitmaps_of_old_and_new_headers(tmp_path, header):
    data = bmp(rows(PIXELS[..., ::-1]), header)
    assert np.array_equal(read_image(saved(tmp_path, data), 10**6), PIXELS)


@pytest.mark.parametrize("header", [12, 40, 124])
def test_bitmaps_with_palettes(tmp_path, header):
    indices = np.random.default_rng(0).integers(0, 256, PIXELS.shape[:2], np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
    blue_first = colours[:, ::-1]
    entries = blue_first if header == 12 else np.pad(blue_first, ((0, 0), (0, 1)))
    data = bmp(rows(indices), header, depth=8, palette=entries.tobytes())
    assert np.array_equal(read_image(saved(tmp_path, data), 10**6), colours[indices])


def test_bitmaps_top_down_and_with_bit_fields(tmp_path):
    data = bmp(rows(PIXELS[::-1, :, ::-1]), 40, top_down=True)
    assert np.array_equal(read_image(saved(tmp_path, data), 10**6), PIXELS)
    packed = PIXELS.astype(np.uint16) >> np.array([3, 2, 3], np.uint16)
    words = packed[..., 0] << 11 | packed[..., 1] << 5 | packed[..., 2]
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    for header in (40, 108):
        data = bmp(rows(words.astype("<u2")), header, depth=16, compression=3, masks=masks)
        path = saved(tmp_path, data)
        expected = np.asarray(Image.open(path)).astype(int)
        assert np.abs(read_image(path, 10**6) - expected).max() <= 1


@pytest.mark.parametrize("header", [0, 13, 16, 255])
def test_bitmaps_of_unknown_headers_are_refused(tmp_path, header):
    data = bytearray(bmp(rows(PIXELS[..., ::-1]), 40))
    data[14:18] = struct.pack("<I", header)
    with pytest.raises(BadImageError):
        read_image(saved(tmp_path, bytes(data)), 10**6)


def several(name, count=3, **options):
    some = [Image.fromarray(scene(40, 56, seed)) for seed in range(count)]
    file = io.BytesIO()
    some[0].save(file, name, save_all=True, append_images=some[1:], **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "images"),
    [
        ("a.tif", several("TIFF"), 3),
        ("a.png", several("PNG", duration=100), 3),
        ("b.png", several("PNG", duration=100, default_image=True), 3),
        ("a.webp", several("WEBP", duration=100, lossless=True), 3),
        ("a.mpo", several("MPO", quality=95, subsampling=0), 3),
        ("a.jpg", jpeg(), 1),
        ("a.jp2", encoded(PIXELS, "JPEG2000"), 1),
        ("a.j2k", encoded(PIXELS, "JPEG2000", no_jp2=True), 1),
        ("a.webp", encoded(PIXELS, "WEBP", lossless=True), 1),
    ],
)
def test_of_several_images_the_first_is_read_and_a_note_says_so(tmp_path, name, data, images):
    path = saved(tmp_path, data, name)
    first = scene(40, 56, 0)
    source = open_source(SourceConfig(url=str(path)))
    (frame,) = source.frames()
    assert np.abs(frame.image.astype(int) - first).max() <= 12
    note = f"{path} holds {images} pictures: only the first full-size one is used"
    assert source.report.notes == ([note] if images > 1 else [])


def test_files_of_several_images_are_counted_over_a_folder(tmp_path):
    for number in range(4):
        saved(tmp_path, several("TIFF", 1 + number % 2), f"{number}.tif")
    source = open_source(SourceConfig(url=str(tmp_path)))
    assert len(list(source.frames())) == 4
    (note,) = source.report.notes
    assert note.endswith(
        "1.tif holds 2 pictures: only the first full-size one is used; 1 more file(s) likewise"
    )


def test_the_largest_image_of_an_icon_is_read(tmp_path):
    pixels = scene(64, 64)
    path = saved(tmp_path, encoded(pixels, "ICO", sizes=[(16, 16), (64, 64), (32, 32)]), "a.ico")
    source = open_source(SourceConfig(url=str(path)))
    (frame,) = source.frames()
    assert np.array_equal(frame.image, pixels)
    assert "3 pictures" in source.report.notes[0]


def test_content_decides_for_a_named_file_of_any_ending(tmp_path):
    for name in ("a", "a.data", "a.JFIF", "a.jpe"):
        (frame,) = open_source(SourceConfig(url=str(saved(tmp_path, jpeg(6), name)))).frames()
        assert frame.image.shape == (56, 40, 3)
        assert frame.item == name
    avif = encoded(PIXELS, "AVIF", quality=90, subsampling="4:4:4")
    (frame,) = open_source(SourceConfig(url=str(saved(tmp_path, avif, "a.mp4")))).frames()
    assert frame.image.shape == PIXELS.shape
    page = tiff([strips(PIXELS)])
    (frame,) = open_source(SourceConfig(url=str(saved(tmp_path, page, "scan")))).frames()
    assert np.array_equal(frame.image, PIXELS)


def test_jpegs_one_behind_the_other_without_an_ending_for_images_are_a_video(tmp_path):
    path = saved(tmp_path, b"".join(jpeg(pixels=scene(40, 56, n)) for n in range(5)), "camera.bin")
    assert len(list(open_source(SourceConfig(url=str(path))).frames())) == 5
