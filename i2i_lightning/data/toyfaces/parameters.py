"""What a toy face is: about sixty named numbers, drawn from a fixed, versioned distribution.

The parameters of face ``index`` of a split are a pure function of ``(version, split, index)``: they are read
off an integer hash (splitmix64), not off a random generator, so they are the same on every machine, in every
order, for every release of NumPy. A split can therefore be extended without changing the faces it already
has, and two splits share none.

Sides are the viewer's: ``left`` is the left of the image. Angles and most shapes are given in [-1, 1] or [0,
1].
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from i2i_lightning.types import UserError

FloatArray = npt.NDArray[Any]

VERSIONS = (1,)
SPLIT_SIZES = {"train": 4000, "val": 200, "test": 200}
"""Faces in each split by default; a larger ``size`` only appends faces."""

_SPLIT_KEYS = {"train": 0, "val": 1, "test": 2}

HAIR_STYLES = ("bald", "buzz", "short", "quiff", "bob", "long", "curly", "bun")
# Only styles that leave the ears free show earrings.
_EARRING_SHARE = {"bun": 0.5, "buzz": 0.15, "short": 0.08, "quiff": 0.08, "bald": 0.1}
HAIR_COLOURS = ("black", "brown", "blond", "red", "grey", "dyed")
GLASSES = ("none", "round", "square", "sun")
BEARDS = ("none", "stubble", "moustache", "full")
CLOTHES = ("crew", "v_neck", "shirt", "stripes")
BACKDROPS = ("studio", "bokeh", "horizon")

# sRGB, light to dark; a tone between two entries is their mixture.
_SKIN_TONES = np.array(
    [
        (252, 223, 205),
        (243, 205, 180),
        (230, 184, 153),
        (211, 158, 122),
        (180, 124, 89),
        (141, 91, 62),
        (116, 75, 53),
        (96, 62, 46),
    ],
    dtype=np.float64,
)
_HAIR_RGB = {
    "black": (38, 32, 34),
    "brown": (98, 62, 40),
    "blond": (222, 182, 110),
    "red": (168, 74, 36),
    "grey": (172, 172, 174),
    "dyed": (60, 150, 160),
}
_IRIS_RGB = np.array(
    [(74, 44, 26), (112, 74, 38), (92, 122, 70), (78, 128, 176), (120, 138, 150)], dtype=np.float64
)
_FRAME_RGB = np.array(
    [(34, 32, 36), (120, 72, 40), (150, 36, 48), (42, 70, 120), (176, 150, 96)], dtype=np.float64
)
_CLOTH_HUES = np.array(
    [
        (196, 62, 58),
        (226, 140, 58),
        (236, 200, 92),
        (92, 148, 88),
        (62, 136, 148),
        (60, 92, 160),
        (120, 82, 150),
        (208, 110, 140),
        (236, 234, 228),
        (64, 66, 76),
    ],
    dtype=np.float64,
)
_BACKDROP_HUES = np.array(
    [
        (188, 204, 216),
        (216, 200, 178),
        (178, 196, 168),
        (206, 178, 180),
        (170, 168, 196),
        (232, 226, 212),
        (118, 142, 160),
        (150, 120, 104),
        (92, 110, 104),
    ],
    dtype=np.float64,
)


@dataclass(frozen=True)
class FaceParameters:
    """One face. Colours are sRGB triples in [0, 1]; everything else is a plain number, a flag or a name."""

    # Pose: 1 is about 30 degrees of yaw, 20 of pitch, 15 of roll; positive yaw looks to the right of the
    # image.
    yaw: float
    pitch: float
    roll: float
    head_x: float
    head_y: float
    head_scale: float
    # Face and skin.
    face_width: float
    face_length: float
    jaw: float
    skin_tone: float
    skin_rgb: tuple[float, float, float]
    blush: float
    freckles: float
    # Hair.
    hair_style: str
    hair_colour: str
    hair_rgb: tuple[float, float, float]
    hair_volume: float
    hair_part: float
    hair_length: float
    fringe: bool
    # Eyes and brows.
    eye_size: float
    eye_spacing: float
    eye_slant: float
    eye_open: float
    gaze_x: float
    gaze_y: float
    iris_rgb: tuple[float, float, float]
    brow_height: float
    brow_angle: float
    brow_thickness: float
    # Nose, mouth, ears.
    nose_width: float
    nose_length: float
    mouth_width: float
    lip_thickness: float
    lip_redness: float
    smile: float
    mouth_open: float
    ear_size: float
    # What the face wears.
    glasses: str
    glasses_rgb: tuple[float, float, float]
    beard: str
    beard_length: float
    earrings: bool
    clothes: str
    cloth_rgb: tuple[float, float, float]
    cloth_accent_rgb: tuple[float, float, float]
    # What stands behind it, and the light.
    backdrop: str
    backdrop_rgb: tuple[float, float, float]
    light_x: float
    light_y: float
    light_strength: float
    light_warmth: float
    texture_seed: int


RANGES: dict[str, tuple[float, float]] = {
    "yaw": (-1.0, 1.0),
    "pitch": (-1.0, 1.0),
    "roll": (-1.0, 1.0),
    "face_width": (-1.0, 1.0),
    "face_length": (-1.0, 1.0),
    "jaw": (0.0, 1.0),
    "skin_tone": (0.0, 1.0),
    "hair_volume": (0.0, 1.0),
    "eye_size": (-1.0, 1.0),
    "eye_spacing": (-1.0, 1.0),
    "eye_slant": (-1.0, 1.0),
    "eye_open": (0.3, 1.0),
    "gaze_x": (-1.0, 1.0),
    "gaze_y": (-1.0, 1.0),
    "brow_height": (-1.0, 1.0),
    "brow_angle": (-1.0, 1.0),
    "brow_thickness": (0.0, 1.0),
    "nose_width": (-1.0, 1.0),
    "nose_length": (-1.0, 1.0),
    "mouth_width": (-1.0, 1.0),
    "lip_thickness": (0.0, 1.0),
    "smile": (-1.0, 1.0),
    "mouth_open": (0.0, 1.0),
    "ear_size": (-1.0, 1.0),
    "light_x": (-1.0, 1.0),
    "light_y": (0.0, 1.0),
}
"""The continuous parameters of the vector, each with the range that is mapped to [-1, 1]."""

ATTRIBUTE_NAMES = (
    "smiling",
    "mouth_open",
    "glasses",
    "sunglasses",
    "beard",
    "moustache",
    "bald",
    "fringe",
    "long_hair",
    "curly_hair",
    "black_hair",
    "brown_hair",
    "blond_hair",
    "red_hair",
    "grey_hair",
    "dyed_hair",
    "earrings",
    "narrow_eyes",
)
"""The yes-or-no attributes, in the order of the vector."""

VECTOR_NAMES = (*RANGES, *(f"is_{name}" for name in ATTRIBUTE_NAMES))
"""The names of :func:`vector`: the continuous parameters, then the attributes with an ``is_`` before them."""

_ODD_UNDER_FLIP = frozenset({"yaw", "roll", "gaze_x", "light_x"})


def attributes(face: FaceParameters) -> dict[str, bool]:
    """Return the named yes-or-no table of a face, keys in the order of :data:`ATTRIBUTE_NAMES`."""
    bald = face.hair_style == "bald"
    table = {
        "smiling": face.smile > 0.3,
        "mouth_open": face.mouth_open > 0.2,
        "glasses": face.glasses != "none",
        "sunglasses": face.glasses == "sun",
        "beard": face.beard == "full",
        "moustache": face.beard == "moustache",
        "bald": bald,
        "fringe": face.fringe,
        "long_hair": face.hair_style == "long",
        "curly_hair": face.hair_style == "curly",
        **{f"{colour}_hair": face.hair_colour == colour and not bald for colour in HAIR_COLOURS},
        "earrings": face.earrings,
        "narrow_eyes": face.eye_open < 0.58,
    }
    return {name: bool(table[name]) for name in ATTRIBUTE_NAMES}


def vector(face: FaceParameters) -> FloatArray:
    """Return the face as numbers, float32 ``(len(VECTOR_NAMES),)``.

    The continuous parameters are mapped from their :data:`RANGES` to [-1, 1]; attributes are 0 or 1.
    """
    values = [2 * (getattr(face, name) - low) / (high - low) - 1 for name, (low, high) in RANGES.items()]
    return np.array([*values, *attributes(face).values()], dtype=np.float32)


def flip_vector(values: FloatArray) -> FloatArray:
    """Return the vector of the face seen in a mirror; ``values`` is ``(..., len(VECTOR_NAMES))``."""
    signs = np.array([-1.0 if name in _ODD_UNDER_FLIP else 1.0 for name in VECTOR_NAMES], dtype=np.float32)
    return values * signs


def hash_uniforms(count: int, *key: int) -> npt.NDArray[np.float64]:
    """Return ``count`` numbers in [0, 1) that depend on nothing but the integers of ``key`` (splitmix64)."""
    mask = (1 << 64) - 1

    def mix(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    state = 0
    for part in key:
        state = mix((state + 0x9E3779B97F4A7C15 * (part + 1)) & mask)
    with np.errstate(over="ignore"):
        words = np.uint64(state) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, count + 1, dtype=np.uint64)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words = words ^ (words >> np.uint64(31))
    uniforms: npt.NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniforms


class _Draws:
    """Uniform numbers taken one after the other; every face takes all, so each parameter keeps its own."""

    def __init__(self, uniforms: npt.NDArray[np.float64]) -> None:
        self._uniforms = uniforms
        self._next = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        value = float(self._uniforms[self._next])
        self._next += 1
        return low + (high - low) * value

    def peaked(self, low: float = -1.0, high: float = 1.0) -> float:
        """A triangular draw: the middle is likely, the ends are rare."""
        return low + (high - low) * 0.5 * (self.uniform() + self.uniform())

    def choose(self, names: tuple[str, ...], weights: tuple[float, ...]) -> str:
        edges = np.cumsum(weights) / sum(weights)
        return names[min(int(np.searchsorted(edges, self.uniform(), side="right")), len(names) - 1)]

    def colour(self, table: npt.NDArray[np.float64], spread: float) -> tuple[float, float, float]:
        row = table[min(int(self.uniform(0, len(table))), len(table) - 1)]
        return self.jitter((row[0], row[1], row[2]), spread)

    def jitter(self, rgb: tuple[float, float, float], spread: float) -> tuple[float, float, float]:
        """Vary brightness by ``spread`` and each channel by a quarter of it; sRGB 0..255 in, 0..1 out."""
        gain = 1 + self.uniform(-spread, spread)
        red, green, blue = (
            float(min(max(channel * gain * (1 + self.uniform(-spread, spread) / 4) / 255, 0.02), 0.99))
            for channel in rgb
        )
        return red, green, blue


def _skin_rgb(tone: float) -> tuple[float, float, float]:
    position = tone * (len(_SKIN_TONES) - 1)
    low = min(int(position), len(_SKIN_TONES) - 2)
    row = _SKIN_TONES[low] + (position - low) * (_SKIN_TONES[low + 1] - _SKIN_TONES[low])
    return row[0], row[1], row[2]


def sample_parameters(split: str, index: int, version: int = 1) -> FaceParameters:
    """Draw the parameters of one face.

    Args:
        split: ``train``, ``val`` or ``test``.
        index: Which face; any number from 0, beyond the default size of the split too.
        version: The version of the distribution; 1 is the only one so far.

    Raises:
        UserError: If the split or the version is unknown, or the index is negative.
    """
    if version not in VERSIONS:
        raise UserError(
            f"version={version}: this release draws ToyFaces version {', '.join(map(str, VERSIONS))}"
        )
    if split not in _SPLIT_KEYS:
        raise UserError(f"split={split!r}: choose one of {', '.join(_SPLIT_KEYS)}")
    if index < 0:
        raise UserError(f"index={index}: face numbers start at 0")
    draws = _Draws(hash_uniforms(128, version, _SPLIT_KEYS[split], index))
    # The calls below happen in a fixed order and number whatever they return; new parameters go at the end.
    yaw, pitch, roll = draws.peaked(), draws.peaked(), draws.peaked()
    head_x, head_y, head_scale = (
        draws.peaked(-0.05, 0.05),
        draws.peaked(-0.04, 0.04),
        draws.peaked(0.94, 1.06),
    )
    face_width, face_length, jaw = draws.peaked(), draws.peaked(), draws.uniform()
    skin_tone = draws.uniform()
    skin_rgb = draws.jitter(_skin_rgb(skin_tone), 0.05)
    blush, freckles = draws.uniform(), draws.uniform()
    style_draw = draws.choose(HAIR_STYLES, (0.07, 0.10, 0.17, 0.13, 0.16, 0.19, 0.10, 0.08))
    hair_colour = draws.choose(HAIR_COLOURS, (0.26, 0.27, 0.18, 0.12, 0.11, 0.06))
    hair_rgb = draws.jitter(_HAIR_RGB[hair_colour], 0.18)
    dye = draws.uniform()
    if hair_colour == "dyed":
        red, green, blue = hair_rgb
        hair_rgb = ((red, green, blue), (blue, red, green), (green * 0.9, red, blue))[int(dye * 3)]
    hair_volume, hair_part, hair_length = draws.uniform(), draws.uniform(-1, 1), draws.uniform()
    fringe = draws.uniform() < 0.42 and style_draw in ("short", "bob", "long")
    eye_size, eye_spacing, eye_slant = draws.peaked(), draws.peaked(), draws.peaked()
    eyes_wide = draws.uniform() < 0.85
    # Eyes, smile and mouth leave a gap at the threshold of their attribute, so that it has one right answer.
    eye_open = draws.uniform(0.66, 1.0) if eyes_wide else draws.uniform(0.3, 0.5)
    gaze_x, gaze_y = draws.peaked(), draws.peaked()
    iris_rgb = draws.colour(_IRIS_RGB[[0, 0, 0, 1, 1, 2, 3, 3, 4]], 0.12)
    brow_height, brow_angle, brow_thickness = draws.peaked(), draws.peaked(), draws.uniform()
    nose_width, nose_length = draws.peaked(), draws.peaked()
    mouth_width, lip_thickness, lip_redness = draws.peaked(), draws.uniform(), draws.uniform()
    smiles = draws.uniform() < 0.55
    smile = draws.uniform(0.5, 1.0) if smiles else draws.uniform(-0.45, 0.1)
    opens, openness = draws.uniform() < 0.4, draws.uniform(0.4, 1.0)
    mouth_open = openness if opens else 0.0
    ear_size = draws.peaked()
    glasses = draws.choose(GLASSES, (0.70, 0.13, 0.13, 0.04))
    glasses_rgb = draws.colour(_FRAME_RGB, 0.1)
    beard_draw = draws.choose(BEARDS, (0.66, 0.10, 0.10, 0.14))
    beard_length = draws.uniform()
    earring_draw = draws.uniform()
    clothes = draws.choose(CLOTHES, (0.34, 0.22, 0.24, 0.20))
    cloth_rgb = draws.colour(_CLOTH_HUES, 0.12)
    cloth_accent_rgb = draws.colour(_CLOTH_HUES, 0.12)
    backdrop = draws.choose(BACKDROPS, (0.45, 0.35, 0.20))
    backdrop_rgb = draws.colour(_BACKDROP_HUES, 0.12)
    light_x, light_y = draws.uniform(-1, 1), draws.uniform()
    light_strength, light_warmth = draws.uniform(), draws.peaked()
    texture_seed = int(draws.uniform(0, 2**31))
    # Long, bobbed and pinned hair goes without a beard most of the time: one beard in four is kept.
    gentle = style_draw in ("bob", "long", "bun") and draws.uniform() < 0.75
    return FaceParameters(
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        head_x=head_x,
        head_y=head_y,
        head_scale=head_scale,
        face_width=face_width,
        face_length=face_length,
        jaw=jaw,
        skin_tone=skin_tone,
        skin_rgb=skin_rgb,
        blush=blush,
        freckles=freckles,
        hair_style=style_draw,
        hair_colour=hair_colour,
        hair_rgb=hair_rgb,
        hair_volume=hair_volume,
        hair_part=hair_part,
        hair_length=hair_length,
        fringe=fringe,
        eye_size=eye_size,
        eye_spacing=eye_spacing,
        eye_slant=eye_slant,
        eye_open=eye_open,
        gaze_x=gaze_x,
        gaze_y=gaze_y,
        iris_rgb=iris_rgb,
        brow_height=brow_height,
        brow_angle=brow_angle,
        brow_thickness=brow_thickness,
        nose_width=nose_width,
        nose_length=nose_length,
        mouth_width=mouth_width,
        lip_thickness=lip_thickness,
        lip_redness=lip_redness,
        smile=smile,
        mouth_open=mouth_open,
        ear_size=ear_size,
        glasses=glasses,
        glasses_rgb=glasses_rgb,
        beard="none" if gentle else beard_draw,
        beard_length=beard_length,
        earrings=earring_draw < _EARRING_SHARE.get(style_draw, 0.0),
        clothes=clothes,
        cloth_rgb=cloth_rgb,
        cloth_accent_rgb=cloth_accent_rgb,
        backdrop=backdrop,
        backdrop_rgb=backdrop_rgb,
        light_x=light_x,
        light_y=light_y,
        light_strength=light_strength,
        light_warmth=light_warmth,
        texture_seed=texture_seed,
    )


def replace(face: FaceParameters, **changes: object) -> FaceParameters:
    """Return the face with some parameters changed: the ground truth of an attribute edit.

    Raises:
        UserError: If a name is no parameter of a face.
    """
    known = {field.name for field in dataclasses.fields(FaceParameters)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise UserError(
            f"unknown face parameter {', '.join(unknown)}: choose from {', '.join(sorted(known))}"
        )
    return dataclasses.replace(face, **changes)  # type: ignore[arg-type]
