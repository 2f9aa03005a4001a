"""Files to arrays: 8 and 16-bit PNG and TIFF, JPEG, WebP, BMP, PNM and .npy, without a silent conversion.

Decisions, all of which are checked rather than assumed:

* The number of channels in a file must be the configured one. A grey file where three channels are configured
  is an error, unless ``convert="match"`` asks for what most pipelines do unasked: PIL's conversion to the
  configured one or three channels (grey is repeated, alpha is dropped, a palette is expanded, CMYK is
  converted without a profile).
* A palette PNG is an index image: as a label map its indices are the ids; as an image it needs
  ``convert="match"``.
* The EXIF orientation of JPEG, WebP and TIFF is applied, because every viewer applies it and people line
  pairs up by eye.
* Arrays are ``(H, W)`` or ``(H, W, C)``: uint8, uint16, or float that is in [-1, 1] already. Label maps may
  be index images of any integer type, or one-hot ``(H, W, K)``.
* Sixteen bits stay sixteen bits. PIL reads colour PNGs of that depth at eight without a word; see
  :func:`_png_16_bit`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from i2i_lightning.data.checks import FileProblem

Array = npt.NDArray[Any]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".npy", ".ppm", ".pgm")
KINDS = ("image", "labels")
CONVERSIONS = ("none", "match")
MATCH_HINT = ", or data.convert=match to convert"

# Below this an image cannot show anything, and is a broken download more often than not.
MIN_SIDE_PX = 8

_PIL_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_GREY, _PNG_GREY_ALPHA = 0, 4
_MODE_CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "I;16L": 1, "F": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L")
_CHANNEL_NAMES = {1: "grey", 2: "grey with alpha", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class SideFormat:
    """What one side of a pair, or the images of one-sided data, are supposed to be.

    Args:
        role: ``"in"`` or ``"out"``: which config keys to name in messages; empty where there is one side.
        kind: ``"image"``, or ``"labels"`` for a label map.
        channels: The image's channels, or the number of classes of the label map.
        convert: ``"none"``, or ``"match"`` to let PIL convert 8-bit files to the configured one or three
            channels.
        fixed_by: Where no key could change the channels, what does not let it, up to what they are:
            ``this generator draws`` RGB.
        mask: Whether the image is a mask: where a file's alpha varies, the mask is that alone, as editors
            export a layer that was painted on.
    """

    role: str
    kind: str
    channels: int
    convert: str = "none"
    fixed_by: str = ""
    mask: bool = False

    @property
    def _channels_named(self) -> str:
        return _CHANNEL_NAMES.get(self.channels, f"{self.channels} channels")

    @property
    def wanted(self) -> str:
        """What files must agree with, for messages."""
        return f"{self.fixed_by} {self._channels_named}" if self.fixed_by else self.channels_key

    def mend(self, change: str) -> str:
        """Return how a file comes to agree: by ``change``, or saved anew where the channels are fixed."""
        return f"save it as {self._channels_named}" if self.fixed_by else change

    @property
    def channels_key(self) -> str:
        """The config key and value of the channels, for messages."""
        return f"{self.key('channels')}={self.channels}"

    def key(self, name: str) -> str:
        """Return the config key of this side's ``kind`` or ``channels``."""
        return f"data.{self.role}_{name}" if self.role else f"data.{name}"

    @property
    def label_dtype(self) -> npt.DTypeLike:
        """The smallest unsigned type that holds every class id."""
        return np.uint8 if self.channels <= 256 else np.uint16


MASK = SideFormat("", "image", 1, "match", "a mask is", mask=True)
"""What a file of a mask is supposed to be: white, or opaque, where it counts."""


@dataclass(frozen=True)
class Header:
    """What a file's header promises.

    Args:
        height: Rows, after the EXIF orientation.
        width: Columns, after the EXIF orientation.
        dtype: ``"uint8"``, ``"uint16"`` or ``"float32"``: the type :func:`decode` will return.
    """

    height: int
    width: int
    dtype: str


def read_header(path: Path, side: SideFormat) -> Header:
    """Check all that the first bytes of a file can tell, without decoding its pixels.

    Args:
        path: The file.
        side: What it is supposed to be.

    Raises:
        FileProblem: If the file is missing, empty, not an image, tiny, or of the wrong channels or type.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise FileProblem("missing") from None
    if size == 0:
        raise FileProblem("empty (0 bytes)", "a failed download or copy?")
    if path.suffix.lower() == ".npy":
        header = _array_header(_open_npy(path), side)
    else:
        header = _image_header(path, side)
    if min(header.height, header.width) < MIN_SIDE_PX:
        detail = f"{header.height}x{header.width}"
        raise FileProblem(f"smaller than {MIN_SIDE_PX} px on a side", detail=detail)
    return header


def decode(path: Path, side: SideFormat) -> Array:
    """Decode a file whose header passed :func:`read_header`.

    Args:
        path: The file.
        side: What it is supposed to be.

    Returns:
        For images ``(H, W, C)`` uint8, uint16, or float32 in [-1, 1]; for label maps ``(H, W)`` ids in
        0..K-1, uint8 or uint16.

    Raises:
        FileProblem: If the pixels cannot be read, a float is outside [-1, 1], or a label id is out of range.
    """
    array = np.asarray(_open_npy(path)) if path.suffix.lower() == ".npy" else _decode_image(path, side)
    if side.kind == "labels":
        return _label_ids(array, side)
    array = array[:, :, None] if array.ndim == 2 else array
    alpha = _alpha(path) if side.mask else None
    if alpha is not None and alpha.min() < alpha.max():
        return alpha[:, :, None]
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        # Written so that a NaN, which compares false with everything, fails too.
        if not (array.min() >= -1 and array.max() <= 1):
            detail = f"{array.min():g} to {array.max():g}"
            raise FileProblem("float pixels outside [-1, 1]", "scale them, or save uint8 or uint16", detail)
    return array


# Arrays, and what any decoded array must look like.


def _open_npy(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileProblem("missing") from None
    except (ValueError, OSError, EOFError) as error:
        mend = "save one plain array with numpy.save"
        raise FileProblem("not readable as .npy", mend, _brief(error)) from None
    return array


def _array_header(array: Array, side: SideFormat) -> Header:
    """Check the shape and type of an array ``(H, W)`` or ``(H, W, C)`` and return it as a header."""
    if array.ndim not in (2, 3):
        raise FileProblem("arrays that are neither (H, W) nor (H, W, C)", detail=f"shape {array.shape}")
    height, width = array.shape[:2]
    channels = array.shape[2] if array.ndim == 3 else 1
    if side.kind == "labels":
        if channels not in (1, side.channels) or array.dtype.kind not in "uib":
            raise FileProblem(
                f"not label maps: (H, W) of integer ids, or one-hot (H, W, {side.channels}), is needed",
                f"{side.key('kind')}=labels",
                f"{array.dtype} {array.shape}",
            )
        return Header(height, width, np.dtype(side.label_dtype).name)
    if channels != side.channels:
        first = array.shape[0]
        moved = array.ndim == 3 and first == side.channels
        mend = "arrays are (H, W, C): move the channels last"
        what = f"of other channels: {side.wanted}" if side.fixed_by else f"not of {side.wanted} channels"
        mend = mend if moved else side.mend(f"set {side.key('channels')}")
        raise FileProblem(what, mend, f"shape {array.shape}")
    if array.dtype.kind == "f":
        return Header(height, width, "float32")
    if array.dtype not in (np.uint8, np.uint16):
        raise FileProblem("neither uint8, uint16 nor float", detail=str(array.dtype))
    return Header(height, width, array.dtype.name)


def _label_ids(array: Array, side: SideFormat) -> Array:
    """Return checked ids ``(H, W)`` from ids ``(H, W)`` or ``(H, W, 1)``, or from one-hot ``(H, W, K)``."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 3:
        if array.min() < 0 or not (array.astype(np.int64).sum(axis=2) == 1).all():
            raise FileProblem(
                "not one-hot: a pixel needs a single 1 among zeros", f"{side.channels_key} classes"
            )
        ids: Array = array.argmax(axis=2).astype(side.label_dtype)
        return ids
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= side.channels:
        raise FileProblem(
            f"with a label id outside 0..{side.channels - 1}",
            f"{side.channels_key} is the number of classes: raise it or remap the ids",
            f"id {lowest if lowest < 0 else highest}",
        )
    return array.astype(side.label_dtype)


# Image files.


def _open_image(path: Path) -> Image.Image:
    """Open an image file with PIL, or say in words why it is none."""
    try:
        # Only what EXTENSIONS promises: PIL would start other programs for some formats.
        return Image.open(path, formats=_PIL_FORMATS)
    except UnidentifiedImageError:
        pass
    except Image.DecompressionBombError:
        raise FileProblem("too large for PIL's safety limit", "cut them into tiles") from None
    except Exception as error:  # PIL's plug-ins raise what they please on damaged headers
        raise FileProblem("not readable as images", "replace or delete", _brief(error)) from None
    with path.open("rb") as file:
        start = file.read(512)
    # The cut may go through a character, which counts as one replacement.
    if b"\0" not in start and start.decode("utf-8", "replace").count("\ufffd") <= 1:
        raise FileProblem("text, not images, whatever their names say", "replace or delete")
    raise FileProblem("not readable as images", "damaged, or of an unknown format: replace or delete")


def _is_tiff(path: Path) -> bool:
    return path.suffix.lower() in (".tif", ".tiff")


def _pil_reads_tiff_exactly(path: Path) -> bool:
    """Whether PIL decodes this TIFF without losing bits or channels; else tifffile does it."""
    try:
        with Image.open(path) as image:
            bits = set(image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)))
            sixteen_bit_grey = image.mode in _SIXTEEN_BIT_MODES
            pages = getattr(image, "n_frames", 1)
            return pages == 1 and (bits <= {1, 8} or sixteen_bit_grey or image.mode == "F")
    except Exception:  # not a TIFF that PIL knows
        return False


def _open_tiff(path: Path) -> tuple[Array, bool]:
    """Return the array of a TIFF that PIL cannot read exactly, and whether it holds palette indices."""
    import tifffile  # here, because few data sets need it

    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series
            page = tiff.pages[0]
            if len(series) != 1:
                raise FileProblem("TIFFs of several images", "one image a file", f"{len(series)} images")
            orientation = page.tags.get(ExifTags.Base.Orientation)
            if orientation is not None and orientation.value != 1:
                raise FileProblem("TIFFs of many channels with an orientation tag", "rotate the pixels")
            photometric = page.photometric.name
            if photometric in ("SEPARATED", "CIELAB", "YCBCR", "MINISWHITE"):
                raise FileProblem(f"TIFFs of colour space {photometric}", "save as RGB or grey")
            array: Array = series[0].asarray()
            axes = series[0].axes
    except FileProblem:
        raise
    except Exception as error:  # tifffile raises many types, and a missing codec as ValueError
        mend = "pip install imagecodecs" if "imagecodecs" in str(error) else "replace or delete"
        raise FileProblem("not readable as TIFF", mend, _brief(error)) from None
    # Pages or planes are channels: (C, H, W) to (H, W, C).
    if array.ndim == 3 and axes[-2:] == "YX":
        array = array.transpose(1, 2, 0)
    return array, photometric == "PALETTE"


def _image_header(path: Path, side: SideFormat) -> Header:
    if _is_tiff(path) and not _pil_reads_tiff_exactly(path):
        array, is_palette = _open_tiff(path)
        if is_palette and side.kind == "image":
            raise _palette_problem(side)
        return _array_header(array, side)
    with _open_image(path) as image:
        height, width = image.height, image.width
        if _orientation(image) >= 5:
            height, width = width, height
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise FileProblem("animations", "one image a file")
        if side.kind == "labels":
            return Header(height, width, _check_label_mode(image, side))
        return Header(height, width, _check_image_mode(image, _png_depth(path), side))


def _check_label_mode(image: Image.Image, side: SideFormat) -> str:
    if image.format in ("JPEG", "MPO"):
        raise FileProblem("label maps stored as JPEG, which does not keep ids", "save them as PNG")
    if image.mode not in ("1", "L", "P", "I", *_SIXTEEN_BIT_MODES):
        raise FileProblem(
            "colour images where label maps (one id a pixel) are needed",
            f"save index images, or set {side.key('kind')}=image",
            image.mode,
        )
    return str(np.dtype(side.label_dtype).name)


def _check_image_mode(image: Image.Image, png_depth: int | None, side: SideFormat) -> str:
    """Return the dtype of an image's pixels, or say which key would make it acceptable."""
    mode = image.mode
    # Pillow before 10 or so opens 16-bit grey PNGs as 32-bit integers.
    sixteen_bit = mode in _SIXTEEN_BIT_MODES or png_depth == 16
    can_match = _can_match(mode, png_depth, side)
    if side.convert == "match" and can_match:
        return "uint8"
    match_hint = MATCH_HINT if can_match else ""
    if mode in ("P", "PA"):
        raise _palette_problem(side, can_match)
    if mode == "CMYK":
        raise FileProblem("CMYK images", side.mend("save as RGB") + match_hint)
    channels = 1 if sixteen_bit and mode == "I" else _MODE_CHANNELS.get(mode)
    if channels is None:
        raise FileProblem("of a pixel type that is not supported", "save as 8 or 16-bit grey or RGB", mode)
    if channels != side.channels:
        name = _CHANNEL_NAMES[channels]
        raise FileProblem(
            f"{name} ({channels} channel{'s' if channels > 1 else ''}) where {side.wanted}",
            side.mend(f"set {side.key('channels')}={channels}") + match_hint,
        )
    if png_depth == 16 and mode == "LA":
        raise FileProblem("16-bit grey PNGs with alpha", "save without alpha")
    return "float32" if mode == "F" else "uint16" if sixteen_bit else "uint8"


def _can_match(mode: str, png_depth: int | None, side: SideFormat) -> bool:
    """Whether PIL's conversion to the configured channels makes sense: 8-bit files to grey or RGB."""
    return side.channels in (1, 3) and png_depth != 16 and mode not in ("F", "I", *_SIXTEEN_BIT_MODES)


def _palette_problem(side: SideFormat, can_match: bool = True) -> FileProblem:
    if side.fixed_by:
        can_match = can_match and side.convert != "match"
        return FileProblem("palette images", side.mend("") + (MATCH_HINT if can_match else ""))
    hint = "data.convert=match expands the palette to colours; " if can_match else ""
    return FileProblem("palette images", f"{hint}kind labels takes the indices as ids")


def _decode_image(path: Path, side: SideFormat) -> Array:
    if _is_tiff(path) and not _pil_reads_tiff_exactly(path):
        return _open_tiff(path)[0]
    depth = _png_depth(path)
    try:
        with _open_image(path) as image:
            if side.kind == "labels":
                return _index_image(image, path)
            mode = image.mode
            if depth == 16 and mode in ("RGB", "RGBA"):
                return _png_16_bit(path, mode)
            if _orientation(image) != 1:
                image = ImageOps.exif_transpose(image)
            if side.convert == "match" and _can_match(mode, depth, side):
                image = image.convert("RGB" if side.channels == 3 else "L")
            if image.mode == "1":
                image = image.convert("L")  # 0 and 255; nothing is lost
            array = np.asarray(image)
    except FileProblem:
        raise
    except FileNotFoundError:
        raise FileProblem("missing") from None
    except Exception as error:  # truncated JPEG: OSError; PNG: SyntaxError, zlib.error, struct.error, ...
        detail = "" if "truncated" in str(error) else _brief(error)
        raise FileProblem("truncated or damaged", "replace or delete", detail) from None
    # PIL's 16-bit modes are big-endian for some files, and 32-bit integers in older releases.
    return array.astype(np.uint16) if array.dtype.kind in "iu" and array.itemsize > 1 else array


def _index_image(image: Image.Image, path: Path) -> Array:
    """Return the ids of an index image, at the values the file stores."""
    array = np.asarray(image)
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    colour_type = _png_colour_type(path)
    depth = _png_depth(path)
    if colour_type == _PNG_GREY and depth is not None and depth < 8:
        # PIL stretches grey of 2 and 4 bits over 0..255.
        ids: Array = array // (255 // (2**depth - 1))
        return ids
    return array


def _png_16_bit(path: Path, mode: str) -> Array:
    """Return all sixteen bits of a colour PNG: ``(H, W, 3 or 4)`` uint16.

    PIL has no 16-bit colour mode and keeps the high byte of each sample. Its raw mode for *little*-endian
    files takes the other byte, so two decodings give both halves of the big-endian sample.
    """
    halves = []
    for raw_mode in (f"{mode};16B", f"{mode};16L"):
        with Image.open(path) as image:
            assert isinstance(image, ImageFile.ImageFile)
            codec, extents, offset = tuple(image.tile[0])[:3]
            tile: Any = (codec, extents, offset, raw_mode)
            image.tile = [type(image.tile[0])(*tile) if hasattr(image.tile[0], "_fields") else tile]
            halves.append(np.asarray(image).astype(np.uint16))
    high, low = halves
    return (high << 8) | low


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; PNG is left out, PIL would have to decode it to know."""
    if image.format not in ("JPEG", "MPO", "WEBP", "TIFF"):
        return 1
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def file_palette(path: Path, classes: int) -> Array | None:
    """Return the first colours of a palette image, uint8 ``(classes, 3)``; None if it has not as many."""
    if path.suffix.lower() == ".npy":
        return None
    try:
        with Image.open(path) as image:
            colours = image.getpalette("RGB") if image.mode == "P" else None
    except (OSError, ValueError):
        return None
    if colours is None or len(colours) < 3 * classes:
        return None
    return np.array(colours[: 3 * classes], dtype=np.uint8).reshape(classes, 3)


def _png_depth(path: Path) -> int | None:
    """Return the bits per sample of a PNG, or None for another format."""
    header = _png_header(path)
    return header[0] if header else None


def _png_colour_type(path: Path) -> int | None:
    header = _png_header(path)
    return header[1] if header else None


def _png_header(path: Path) -> tuple[int, int] | None:
    """Return (bit depth, colour type) from the IHDR chunk, which the standard puts first."""
    with path.open("rb") as file:
        start = file.read(26)
    if len(start) < 26 or not start.startswith(_PNG_SIGNATURE):
        return None
    depth, colour_type = struct.unpack("BB", start[24:26])
    return depth, colour_type


def _brief(error: Exception) -> str:
    """Return the first line of an error's message, shortened."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:80]


def _alpha(path: Path) -> Array | None:
    """Return the alpha of an image file, uint8 ``(H, W)``; None if it has none."""
    if path.suffix.lower() == ".npy" or (_is_tiff(path) and not _pil_reads_tiff_exactly(path)):
        return None
    with _open_image(path) as image:
        if not image.has_transparency_data or image.mode in ("I", *_SIXTEEN_BIT_MODES):
            return None
        upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        return np.asarray(upright.convert("RGBA").getchannel("A"))
