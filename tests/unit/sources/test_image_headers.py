"""Headers of image files: orientation, size and number of images."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.still_images import build_tiff, encode_image, exif_block, smooth_image, strip_page

from streamseg.config import SourceConfig
from streamseg.sources import open_source
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_exif_orientation, read_image, read_image_file

pytestmark = pytest.mark.timeout(60)
PIXELS = smooth_image(40, 56)


def save_file(tmp_path, data, name="a.jpg"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def encode_jpeg(orientation=None, pixels=PIXELS, **options):
    if orientation is not None:
        options["exif"] = b"Exif\0\0" + exif_block(orientation)
    return encode_image(pixels, "JPEG", quality=95, subsampling=0, **options)


def build_segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def insert_segments(data, *segments):
    """Return a JPEG with more segments after its start marker."""
    return data[:2] + b"".join(segments) + data[2:]


def build_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("first", [None, 1, 3, 6])
@pytest.mark.parametrize("second", [None, 1, 6, 8])
@pytest.mark.parametrize("between", [b"", bytes(100)])
def test_second_jpeg_after_the_first_does_not_affect_the_orientation(
    tmp_path, first, second, between
):
    path = save_file(
        tmp_path, encode_jpeg(first) + between + encode_jpeg(second, smooth_image(40, 56, 1))
    )
    assert read_exif_orientation(path, 10**6) == (first or 1)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.abs(read_image(path, 10**6).astype(int) - expected).max() <= 4
    assert read_image_file(path, 10**6).header.images == 2


@pytest.mark.parametrize(
    "other",
    [
        build_segment(0xFE, b"Exif\0\0" + exif_block(6)),  # a comment
        build_segment(0xED, encode_jpeg(6)[:60]),  # as image editors write it
        build_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"Exif\0\0" + exif_block(6)),
        build_segment(0xE2, encode_jpeg(8)),  # a whole image in a segment
    ],
)
@pytest.mark.parametrize("orientation", [None, 3])
def test_other_segments_do_not_affect_the_orientation(tmp_path, other, orientation):
    path = save_file(tmp_path, insert_segments(encode_jpeg(orientation), other))
    assert read_exif_orientation(path, 10**6) == (orientation or 1)
    assert read_image_file(path, 10**6).header.images == 1


def test_orientation_of_a_thumbnail_is_ignored(tmp_path):
    block = exif_block(3)
    thumbnail = exif_block(6)[8:]  # a second directory, linked from the first
    linked = block[:-4] + struct.pack("<I", len(block)) + thumbnail
    path = save_file(tmp_path, encode_jpeg(exif=b"Exif\0\0" + linked + encode_jpeg(8)))
    assert read_exif_orientation(path, 10**6) == 3


@pytest.mark.parametrize("orientation", [0, 9, 255])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_orientation_out_of_range_is_upright(tmp_path, orientation, kind):
    path = save_file(tmp_path, encode_jpeg(exif=b"Exif\0\0" + exif_block(orientation, ">", kind)))
    assert read_exif_orientation(path, 10**6) == 1
    assert read_image(path, 10**6).shape == PIXELS.shape


@pytest.mark.parametrize("length", range(0, 22, 3))
def test_truncated_exif_is_upright(tmp_path, length):
    path = save_file(tmp_path, encode_jpeg(exif=b"Exif\0\0" + exif_block(6)[:length]))
    assert read_exif_orientation(path, 10**6) == 1
    assert read_image(path, 10**6).shape == PIXELS.shape


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_eight_orientations_are_applied_in_both_byte_orders(tmp_path, orientation, order):
    block = exif_block(orientation, order)
    png = encode_image(PIXELS, "PNG")
    end = len(png) - 12
    files = {
        "a.jpg": encode_jpeg(exif=b"Exif\0\0" + block),
        "a.webp": encode_image(PIXELS, "WEBP", lossless=True, exif=block),
        "b.webp": encode_image(PIXELS, "WEBP", lossless=True, exif=b"Exif\0\0" + block),
        "a.png": png[:33] + build_chunk(b"eXIf", block) + png[33:],
        "b.png": png[:end] + build_chunk(b"eXIf", block) + png[end:],
        "c.png": png[:33]
        + build_chunk(b"tEXt", b"x\0eXIf" + exif_block(9 - orientation))
        + png[33:end]
        + build_chunk(b"eXIf", block)
        + png[end:]
        + build_chunk(b"eXIf", exif_block(9 - orientation)),
    }
    marked = Image.fromarray(PIXELS)
    marked.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(marked)).astype(int)
    for name, data in files.items():
        image = read_image(save_file(tmp_path, data, name), 10**6)
        assert image.shape == expected.shape, name
        assert np.abs(image - expected).max() <= (12 if name == "a.jpg" else 0), name


def build_bmp(pixels, header, *, depth=24, compression=0, top_down=False, masks=b"", palette=b""):
    """Build a BMP from its stored rows, bottom row first unless ``top_down``."""
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


def pack_rows(samples):
    """Return the rows as stored in a BMP: bottom row first, each padded to four bytes."""
    return b"".join(row.tobytes().ljust(-(-row.nbytes // 4) * 4, b"\0") for row in samples[::-1])


@pytest.mark.parametrize("header", [12, 40, 64, 108, 124])
def test_bmp_is_read_with_every_header_version(tmp_path, header):
    data = build_bmp(pack_rows(PIXELS[..., ::-1]), header)
    assert np.array_equal(read_image(save_file(tmp_path, data), 10**6), PIXELS)


@pytest.mark.parametrize("header", [12, 40, 124])
def test_bmp_with_a_palette_is_read(tmp_path, header):
    indices = np.random.default_rng(0).integers(0, 256, PIXELS.shape[:2], np.uint8)
    colors = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
    blue_first = colors[:, ::-1]
    entries = blue_first if header == 12 else np.pad(blue_first, ((0, 0), (0, 1)))
    data = build_bmp(pack_rows(indices), header, depth=8, palette=entries.tobytes())
    assert np.array_equal(read_image(save_file(tmp_path, data), 10**6), colors[indices])


def test_bmp_is_read_top_down_and_with_bit_fields(tmp_path):
    data = build_bmp(pack_rows(PIXELS[::-1, :, ::-1]), 40, top_down=True)
    assert np.array_equal(read_image(save_file(tmp_path, data), 10**6), PIXELS)
    packed = PIXELS.astype(np.uint16) >> np.array([3, 2, 3], np.uint16)
    words = packed[..., 0] << 11 | packed[..., 1] << 5 | packed[..., 2]
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    for header in (40, 108):
        data = build_bmp(
            pack_rows(words.astype("<u2")), header, depth=16, compression=3, masks=masks
        )
        path = save_file(tmp_path, data)
        expected = np.asarray(Image.open(path)).astype(int)
        assert np.abs(read_image(path, 10**6) - expected).max() <= 1


@pytest.mark.parametrize("header", [0, 13, 16, 255])
def test_bmp_with_an_unknown_header_is_refused(tmp_path, header):
    data = bytearray(build_bmp(pack_rows(PIXELS[..., ::-1]), 40))
    data[14:18] = struct.pack("<I", header)
    with pytest.raises(BadImageError):
        read_image(save_file(tmp_path, bytes(data)), 10**6)


def encode_images(name, count=3, **options):
    """Encode several images to one file."""
    images = [Image.fromarray(smooth_image(40, 56, seed)) for seed in range(count)]
    file = io.BytesIO()
    images[0].save(file, name, save_all=True, append_images=images[1:], **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "images"),
    [
        ("a.tif", encode_images("TIFF"), 3),
        ("a.png", encode_images("PNG", duration=100), 3),
        ("b.png", encode_images("PNG", duration=100, default_image=True), 3),
        ("a.webp", encode_images("WEBP", duration=100, lossless=True), 3),
        ("a.mpo", encode_images("MPO", quality=95, subsampling=0), 3),
        ("a.jpg", encode_jpeg(), 1),
        ("a.jp2", encode_image(PIXELS, "JPEG2000"), 1),
        ("a.j2k", encode_image(PIXELS, "JPEG2000", no_jp2=True), 1),
        ("a.webp", encode_image(PIXELS, "WEBP", lossless=True), 1),
    ],
)
def test_first_of_several_images_is_read_and_the_number_is_reported(tmp_path, name, data, images):
    path = save_file(tmp_path, data, name)
    first = smooth_image(40, 56, 0)
    source = open_source(SourceConfig(url=str(path)))
    (frame,) = source.frames()
    assert np.abs(frame.image.astype(int) - first).max() <= 12
    note = f"{path} holds {images} images: only the main image is used"
    assert source.report.notes == ([note] if images > 1 else [])


def test_files_with_several_images_are_counted_in_a_folder(tmp_path):
    for number in range(4):
        save_file(tmp_path, encode_images("TIFF", 1 + number % 2), f"{number}.tif")
    source = open_source(SourceConfig(url=str(tmp_path)))
    assert len(list(source.frames())) == 4
    (note,) = source.report.notes
    assert note.endswith(
        "1.tif holds 2 images: only the main image is used; the same holds for 1 more file(s)"
    )


def test_largest_image_of_an_icon_is_read(tmp_path):
    pixels = smooth_image(64, 64)
    data = encode_image(pixels, "ICO", sizes=[(16, 16), (64, 64), (32, 32)])
    path = save_file(tmp_path, data, "a.ico")
    source = open_source(SourceConfig(url=str(path)))
    (frame,) = source.frames()
    assert np.array_equal(frame.image, pixels)
    assert "3 images" in source.report.notes[0]


def test_named_file_with_any_extension_is_recognized_by_content(tmp_path):
    for name in ("a", "a.data", "a.JFIF", "a.jpe"):
        (frame,) = open_source(
            SourceConfig(url=str(save_file(tmp_path, encode_jpeg(6), name)))
        ).frames()
        assert frame.image.shape == (56, 40, 3)
        assert frame.item == name
    avif = encode_image(PIXELS, "AVIF", quality=90, subsampling="4:4:4")
    (frame,) = open_source(SourceConfig(url=str(save_file(tmp_path, avif, "a.mp4")))).frames()
    assert frame.image.shape == PIXELS.shape
    page = build_tiff([strip_page(PIXELS)])
    (frame,) = open_source(SourceConfig(url=str(save_file(tmp_path, page, "scan")))).frames()
    assert np.array_equal(frame.image, PIXELS)


def test_concatenated_jpegs_without_an_image_extension_are_a_video(tmp_path):
    data = b"".join(encode_jpeg(pixels=smooth_image(40, 56, seed)) for seed in range(5))
    path = save_file(tmp_path, data, "camera.bin")
    assert len(list(open_source(SourceConfig(url=str(path))).frames())) == 5
