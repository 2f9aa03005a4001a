"""Every kind of file, exactly; every kind of slip, in words."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from i2i_lightning.data.checks import FileProblem
from i2i_lightning.data.decode import SideFormat, decode, file_palette, read_header

RGB = SideFormat("in", "image", 3)
GREY = SideFormat("out", "image", 1)
RGB_MATCH = SideFormat("in", "image", 3, "match")
GREY_MATCH = SideFormat("in", "image", 1, "match")
LABELS = SideFormat("in", "labels", 5)

RNG = np.random.default_rng(0)
RGB8 = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)
GREY8 = RGB8[:, :, 0].copy()
RGB16 = RNG.integers(0, 65536, (12, 10, 3)).astype(np.uint16)
IDS = RNG.integers(0, 5, (12, 10)).astype(np.uint8)


def read(path: Path, side: SideFormat) -> np.ndarray:
    header = read_header(path, side)
    array = decode(path, side)
    assert (header.height, header.width) == array.shape[:2]
    assert header.dtype == array.dtype
    return array


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
def test_eight_bit_rgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB8).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read(path, RGB), RGB8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm"])
def test_eight_bit_grey(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY8).save(path)
    np.testing.assert_array_equal(read(path, GREY), GREY8[:, :, None])


def test_jpeg_is_pil_s(tmp_path: Path) -> None:
    Image.fromarray(RGB8).save(tmp_path / "a.jpg", quality=90)
    np.testing.assert_array_equal(read(tmp_path / "a.jpg", RGB), np.asarray(Image.open(tmp_path / "a.jpg")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB16[:, :, 0]).save(path)
    np.testing.assert_array_equal(read(path, GREY), RGB16[:, :, :1])


@pytest.mark.parametrize("filter_", range(5))
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_png_keeps_all_bits(tmp_path: Path, filter_: int, channels: int) -> None:
    pixels = RNG.integers(0, 65536, (12, 10, channels)).astype(np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(png_16_bit(pixels, filter_))
    np.testing.assert_array_equal(read(path, SideFormat("in", "image", channels)), pixels)


def png_16_bit(pixels: np.ndarray, filter_: int = 0) -> bytes:
    """Write a 16-bit colour PNG by the book, since PIL cannot."""
    import struct
    import zlib

    height, width, channels = pixels.shape
    step = 2 * channels
    rows = pixels.astype(">u2").tobytes()
    stride = width * step
    lines = []
    for y in range(height):
        raw = rows[y * stride : (y + 1) * stride]
        up = rows[(y - 1) * stride : y * stride] if y else bytes(stride)
        line = bytearray([filter_])
        for x, value in enumerate(raw):
            a, b = (raw[x - step] if x >= step else 0), up[x]
            c = up[x - step] if x >= step else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            line.append((value - (0, a, b, (a + b) // 2, paeth)[filter_]) % 256)
        lines.append(bytes(line))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour_type = {3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_sixteen_bit_rgb_tiff(tmp_path: Path, compression: str | None, planar: str) -> None:
    pixels = RGB16 if planar == "contig" else RGB16.transpose(2, 0, 1)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", planarconfig=planar, compression=compression
    )
    np.testing.assert_array_equal(read(tmp_path / "a.tif", RGB), RGB16)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_many_channels(tmp_path: Path, dtype: type) -> None:
    pixels = RNG.integers(0, np.iinfo(dtype).max, (12, 10, 6)).astype(dtype)
    side = SideFormat("in", "image", 6)
    np.save(tmp_path / "a.npy", pixels)
    np.testing.assert_array_equal(read(tmp_path / "a.npy", side), pixels)
    # As pages, which is how TIFFs of many bands are mostly written.
    tifffile.imwrite(tmp_path / "a.tif", pixels.transpose(2, 0, 1), photometric="minisblack")
    np.testing.assert_array_equal(read(tmp_path / "a.tif", side), pixels)


def test_float_arrays_pass_if_they_are_in_range(tmp_path: Path) -> None:
    pixels = RNG.uniform(-1, 1, (12, 10)).astype(np.float32)
    np.save(tmp_path / "a.npy", pixels)
    np.testing.assert_array_equal(read(tmp_path / "a.npy", GREY)[:, :, 0], pixels)
    for wrong in (pixels * 255, np.full_like(pixels, np.nan)):
        np.save(tmp_path / "a.npy", wrong)
        with pytest.raises(FileProblem, match="outside"):
            read(tmp_path / "a.npy", GREY)


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY8 > 127).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png", GREY)[:, :, 0], (GREY8 > 127) * np.uint8(255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB8).save(tmp_path / "a.webp", exif=exif, lossless=True)
    turned = {
        1: RGB8,
        2: RGB8[:, ::-1],
        3: RGB8[::-1, ::-1],
        4: RGB8[::-1],
        5: RGB8.transpose(1, 0, 2),
        6: np.rot90(RGB8, -1),
        7: np.rot90(RGB8, 2).transpose(1, 0, 2),
        8: np.rot90(RGB8, 1),
    }[orientation]
    np.testing.assert_array_equal(read(tmp_path / "a.webp", RGB), turned)


# Label maps.


def test_index_images(tmp_path: Path) -> None:
    Image.fromarray(IDS).save(tmp_path / "grey.png")
    palette = Image.fromarray(IDS)
    palette.putpalette(list(range(100, 115)))
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "two_bits.png", bits=4)
    Image.fromarray(IDS.astype(np.uint16)).save(tmp_path / "sixteen.png")
    np.save(tmp_path / "array.npy", IDS.astype(np.int64))
    np.save(tmp_path / "hot.npy", np.eye(5, dtype=np.uint8)[IDS])
    np.save(tmp_path / "one_channel.npy", IDS[:, :, None])
    for path in sorted(tmp_path.iterdir()):
        ids = read(path, LABELS)
        assert ids.dtype == np.uint8, path.name
        np.testing.assert_array_equal(ids, IDS, err_msg=path.name)
    colours = file_palette(tmp_path / "palette.png", 5)
    np.testing.assert_array_equal(colours, np.arange(100, 115).reshape(5, 3))
    assert file_palette(tmp_path / "grey.png", 5) is None


def test_grey_of_few_bits_is_not_stretched(tmp_path: Path) -> None:
    import struct
    import zlib

    ids = np.arange(16, dtype=np.uint8).reshape(1, 16).repeat(8, 0)
    lines = b"".join(b"\0" + bytes((row[0::2] << 4 | row[1::2]).tolist()) for row in ids)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 16, 8, 4, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(read(tmp_path / "a.png", SideFormat("in", "labels", 16)), ids)


def test_many_classes_need_sixteen_bits(tmp_path: Path) -> None:
    ids = RNG.integers(0, 1000, (9, 9)).astype(np.int32)
    np.save(tmp_path / "a.npy", ids)
    array = read(tmp_path / "a.npy", SideFormat("in", "labels", 1000))
    assert array.dtype == np.uint16
    np.testing.assert_array_equal(array, ids)


# The explicit conversion.


def test_match_converts_as_pil_does(tmp_path: Path) -> None:
    grey, rgb = Image.fromarray(GREY8), Image.fromarray(RGB8)
    grey.save(tmp_path / "grey.jpg")
    rgb.save(tmp_path / "rgb.jpg")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    rgb.convert("RGBA").save(tmp_path / "rgba.png")
    rgb.quantize(8).save(tmp_path / "palette.png")
    for path in sorted(tmp_path.iterdir()):
        expected = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(read(path, RGB_MATCH), expected, err_msg=path.name)
        expected = np.asarray(Image.open(path).convert("L"))
        np.testing.assert_array_equal(read(path, GREY_MATCH)[:, :, 0], expected, err_msg=path.name)


def test_match_does_not_throw_bits_away(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_16_bit(RGB16))
    np.testing.assert_array_equal(read(tmp_path / "a.png", RGB_MATCH), RGB16)
    with pytest.raises(FileProblem, match=r"RGB \(3 channels\) where data.in_channels=1"):
        read(tmp_path / "a.png", GREY_MATCH)


# Slips.


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


BIG = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
SLIPS = {
    "empty": ("a.png", b"", RGB, "empty"),
    "text": ("a.png", b"404 not found: <html>\n", RGB, "text, not images"),
    "text in another language": ("a.jpg", "Größe: 3 €\n".encode(), RGB, "text, not images"),
    "bytes": ("a.png", bytes(range(256)), RGB, "not readable as images"),
    "truncated jpeg": ("a.jpg", jpeg(BIG)[:-200], RGB, "truncated or damaged"),
    "truncated png": ("a.png", png(BIG)[:-2000], RGB, "truncated or damaged"),
    "truncated header": ("a.png", png(BIG)[:20], RGB, "not readable as images|truncated"),
    "cmyk": ("a.jpg", jpeg(BIG.convert("CMYK")), RGB, "CMYK images.*data.convert=match"),
    "one pixel": ("a.png", png(Image.new("RGB", (1, 1))), RGB, r"smaller than 8 px on a side.*1x1"),
    "grey": (
        "a.jpg",
        jpeg(BIG.convert("L")),
        RGB,
        r"grey \(1 channel\) where data.in_channels=3.*in_channels=1.*match",
    ),
    "colour": ("a.jpg", jpeg(BIG), GREY, r"RGB \(3 channels\) where data.out_channels=1.*data.convert=match"),
    "alpha": ("a.png", png(BIG.convert("RGBA")), RGB, r"RGBA \(4 channels\) where data.in_channels=3"),
    "palette": ("a.png", png(BIG.quantize(8)), RGB, "palette images.*data.convert=match"),
    "sixteen bits": ("a.png", png_16_bit(RGB16), GREY, r"RGB \(3 channels\) where data.out_channels=1"),
    "colours as labels": ("a.png", png(BIG), LABELS, "colour images where label maps.*data.in_kind=image"),
    "jpeg as labels": ("a.jpg", jpeg(BIG.convert("L")), LABELS, "label maps stored as JPEG"),
    "label id": (
        "a.png",
        png(Image.fromarray(IDS + 27)),
        LABELS,
        r"label id outside 0..4.*in_channels=5.*id 31",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_slips(tmp_path: Path, slip: str) -> None:
    name, content, side, message = SLIPS[slip]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileProblem, match=message):
        read(tmp_path / name, side)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="missing"):
        read(tmp_path / "a.png", RGB)


ARRAY_SLIPS = {
    "channels first": (np.zeros((3, 12, 10), np.uint8), RGB, "move the channels last"),
    "channels": (np.zeros((12, 10, 4), np.uint8), RGB, "not of data.in_channels=3 channels"),
    "axes": (np.zeros((2, 12, 10, 3), np.uint8), RGB, r"neither \(H, W\) nor \(H, W, C\)"),
    "type": (np.zeros((12, 10, 3), np.int32), RGB, "neither uint8, uint16 nor float"),
    "negative id": (np.full((12, 10), -1), LABELS, "outside 0..4.*id -1"),
    "float ids": (np.zeros((12, 10), np.float32), LABELS, "not label maps"),
    "not one-hot": (np.ones((12, 10, 5), np.uint8), LABELS, "not one-hot"),
    "objects": (np.array([{"a": 1}], dtype=object), RGB, "not readable as .npy"),
}


@pytest.mark.parametrize("slip", ARRAY_SLIPS)
def test_slips_of_arrays(tmp_path: Path, slip: str) -> None:
    array, side, message = ARRAY_SLIPS[slip]
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(FileProblem, match=message):
        read(tmp_path / "a.npy", side)


def test_truncated_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RGB8)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-10])
    with pytest.raises(FileProblem, match=r"not readable as \.npy"):
        read(tmp_path / "a.npy", RGB)


def test_several_images_in_one_tiff(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(RGB8, photometric="rgb")
        writer.write(GREY8[:5, :5], photometric="minisblack")
    with pytest.raises(FileProblem, match="several images"):
        read(tmp_path / "a.tif", RGB)
