"""Where everything in a toy face lies: signed distance fields, and the landmarks they share.

The canvas is the square of half side :data:`VIEW` around (0, -0.04), with y downwards; a pixel is a sample at
its centre, so nothing here knows a resolution. Three frames are used. *Canvas* ``(x, y)`` holds the body.
*Head* ``(hx, hy)`` is the canvas moved, scaled and rolled with the head. *Face* ``(u, v)`` slides over the
head with yaw and pitch, most where the head bulges towards the viewer: the parallax of a turned head, smooth
and invertible, which the drawing follows backwards (pixel to face) and the landmarks forwards (face to
pixel).

Each part is one signed distance field, negative inside, in canvas units. Everything that is ever drawn
(photo, cartoon, parsing, instances, edges, regions) is derived from these fields, and therefore agrees to the
pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from i2i_lightning.data.toyfaces.parameters import FaceParameters, hash_uniforms

FloatArray = npt.NDArray[Any]
"""Arrays of float32; NumPy's own annotations do not follow that through arithmetic."""

VIEW = 0.85
"""Half the side of the picture, in canvas units: about 1.55 times the half height of a head."""

_VIEW_Y = -0.04

CLASS_NAMES = (
    "background",
    "skin",
    "brows",
    "eyes",
    "glasses",
    "ears",
    "nose",
    "mouth",
    "neck",
    "cloth",
    "hair",
)
"""The classes of the parsing map. ``hair`` includes beards, ``ears`` earrings, ``glasses`` lenses."""

CLASS_PALETTE: tuple[tuple[int, int, int], ...] = (
    (32, 36, 56),
    (244, 196, 160),
    (122, 66, 28),
    (72, 150, 240),
    (20, 196, 180),
    (240, 128, 60),
    (252, 232, 92),
    (220, 44, 84),
    (176, 112, 150),
    (64, 150, 66),
    (146, 60, 190),
)
"""The fixed sRGB colour of each class."""

INSTANCE_NAMES = (
    "background",
    "face",
    "brow_left",
    "brow_right",
    "eye_left",
    "eye_right",
    "glasses",
    "ear_left",
    "ear_right",
    "nose",
    "mouth",
    "neck",
    "cloth",
    "hair",
    "beard",
)
"""The ids of the instance map; left and right are the viewer's."""

FLIPPED_INSTANCES = (0, 1, 3, 2, 5, 4, 6, 8, 7, 9, 10, 11, 12, 13, 14)
"""The id that each id becomes in a mirror image."""

# Part -> (class, instance), from the back of the picture to its front.
PARTS: dict[str, tuple[int, int]] = {
    "hair_back": (10, 13),
    "neck": (8, 11),
    "cloth": (9, 12),
    "ear_left": (5, 7),
    "ear_right": (5, 8),
    "face": (1, 1),
    "beard": (10, 14),
    "mouth": (7, 10),
    "nose": (6, 9),
    "lens_clear": (4, 6),
    "eye_left": (3, 4),
    "eye_right": (3, 5),
    "brow_left": (2, 2),
    "brow_right": (2, 3),
    "lens_dark": (4, 6),
    "frame": (4, 6),
    "hair": (10, 13),
}

LANDMARK_NAMES = (
    "jaw_0",
    "jaw_1",
    "jaw_2",
    "jaw_3",
    "chin",
    "jaw_5",
    "jaw_6",
    "jaw_7",
    "jaw_8",
    "brow_left_outer",
    "brow_left_middle",
    "brow_left_inner",
    "brow_right_inner",
    "brow_right_middle",
    "brow_right_outer",
    "eye_left_outer",
    "eye_left_top",
    "eye_left_inner",
    "eye_left_bottom",
    "eye_right_inner",
    "eye_right_top",
    "eye_right_outer",
    "eye_right_bottom",
    "pupil_left",
    "pupil_right",
    "nose_bridge",
    "nose_tip",
    "nose_left",
    "nose_right",
    "mouth_left",
    "mouth_top",
    "mouth_right",
    "mouth_bottom",
)
"""The named points; left and right are the viewer's, the jaw runs from left to right over the chin."""

FIVE_POINTS = ("pupil_left", "pupil_right", "nose_tip", "mouth_left", "mouth_right")
"""The five points that face alignment commonly uses, by name."""


def _mirrored_name(name: str) -> str:
    if name.startswith("jaw_"):
        return f"jaw_{8 - int(name[4:])}"
    if "left" in name:
        return name.replace("left", "right")
    return name.replace("right", "left")


FLIPPED_LANDMARKS = tuple(LANDMARK_NAMES.index(_mirrored_name(name)) for name in LANDMARK_NAMES)
"""``points[FLIPPED_LANDMARKS]`` with x replaced by 1 - x are the landmarks of the mirror image."""


def flip_landmarks(points: FloatArray) -> FloatArray:
    """Return the landmarks of the mirror image; ``points`` is ``(K, 2)``, x then y, in [0, 1]."""
    flipped: FloatArray = points[list(FLIPPED_LANDMARKS)].copy()
    flipped[:, 0] = 1 - flipped[:, 0]
    return flipped


def clip01(values: FloatArray) -> FloatArray:
    """Limit a fresh array to [0, 1] in place; at these sizes twice as fast as ``np.clip``."""
    np.maximum(values, 0, out=values)
    return np.minimum(values, 1, out=values)


class Eye(NamedTuple):
    """One eye: centre in the face frame, half width, lid heights, tilt, iris centre and radius."""

    u: float
    v: float
    half_width: float
    upper: float
    lower: float
    tilt: float
    iris_u: float
    iris_v: float
    iris_radius: float


@dataclass(frozen=True)
class Measures:
    """The lengths of one head, in head units, computed once from its parameters."""

    face: FaceParameters
    half_width: float = field(init=False)
    top: float = field(init=False)
    bottom: float = field(init=False)
    jaw_power: float = field(init=False)
    centre: tuple[float, float] = field(init=False)
    roll: float = field(init=False)
    nose_base: float = field(init=False)
    mouth_v: float = field(init=False)
    mouth_half: float = field(init=False)
    mouth_gap: float = field(init=False)
    lips: tuple[float, float] = field(init=False)
    eyes: tuple[Eye, Eye] = field(init=False)

    def __post_init__(self) -> None:
        face = self.face
        put = object.__setattr__
        width = 1 + 0.10 * face.face_width
        length = 1 + 0.08 * face.face_length
        put(self, "half_width", 0.405 * width)
        put(self, "top", 0.50)
        put(self, "bottom", 0.55 * length)
        put(self, "jaw_power", 1.95 + 0.85 * face.jaw)
        put(self, "centre", (face.head_x, face.head_y - 0.09))
        put(self, "roll", math.radians(15) * face.roll)
        put(self, "nose_base", 0.195 * (1 + 0.10 * face.nose_length) * length)
        put(self, "mouth_v", self.nose_base + 0.135 * length)
        put(self, "mouth_half", 0.132 * width * (1 + 0.20 * face.mouth_width + 0.16 * max(face.smile, 0.0)))
        put(self, "mouth_gap", 0.10 * face.mouth_open)
        thickness = 0.018 + 0.026 * face.lip_thickness
        put(self, "lips", (thickness, 1.25 * thickness))
        squint = face.eye_open * (1 - 0.22 * max(face.smile, 0.0))
        eyes = []
        for side in (-1.0, 1.0):
            size = 1 + 0.17 * face.eye_size
            eyes.append(
                Eye(
                    u=side * 0.172 * width * (1 + 0.12 * face.eye_spacing),
                    v=0.0,
                    half_width=0.086 * size,
                    upper=0.070 * size * squint,
                    lower=0.044 * size * (0.55 + 0.45 * squint),
                    tilt=-side * math.radians(13) * face.eye_slant,
                    iris_u=0.036 * face.gaze_x,
                    iris_v=-0.010 * squint + 0.018 * face.gaze_y,
                    iris_radius=0.047 * size,
                )
            )
        put(self, "eyes", (eyes[0], eyes[1]))

    def mouth_curves(self, t: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Heights v of the four lip lines, outer upper to outer lower, at ``t`` in [-1, 1]."""
        arch = 1 - t * t
        middle = self.mouth_v - 0.062 * self.face.smile * (t * t - 0.35)
        inner_upper = middle - 0.35 * self.mouth_gap * arch
        inner_lower = middle + 0.65 * self.mouth_gap * arch
        bow = 1 - 0.30 * np.exp(-((t / 0.16) ** 2))
        return (
            inner_upper - self.lips[0] * arch * bow,
            inner_upper,
            inner_lower,
            inner_lower + self.lips[1] * arch,
        )

    def parallax(self, hx: FloatArray, hy: FloatArray) -> tuple[FloatArray, FloatArray]:
        """How far the face has slid over the head at a head position: the bulge times the turn."""
        bulge = np.exp(-1.1 * ((hx / self.half_width) ** 2 + (hy / 0.54) ** 2))
        return 0.165 * self.face.yaw * bulge, 0.10 * self.face.pitch * bulge

    def nose_shift(self, v: FloatArray) -> FloatArray:
        """How much further than the face the nose has slid: it stands out, its tip most."""
        rise = np.clip((v + 0.04) / (self.nose_base + 0.02), 0, 1)
        return 0.05 * self.face.yaw * rise * rise

    def chin_shift(self, hy: FloatArray) -> FloatArray:
        """How far the outline of the jaw leans towards where the head looks."""
        return 0.06 * self.face.yaw * (np.maximum(hy, 0) / self.bottom) ** 2

    def to_canvas(self, hx: FloatArray, hy: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Head frame to canvas."""
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        scale = self.face.head_scale
        return self.centre[0] + scale * (cos * hx - sin * hy), self.centre[1] + scale * (sin * hx + cos * hy)

    def face_to_head(self, u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Invert the parallax by fixed-point iteration; it contracts by at least 0.6 a step."""
        hx, hy = u, v
        for _ in range(24):
            du, dv = self.parallax(hx, hy)
            hx, hy = u + du, v + dv
        return hx, hy


@dataclass
class Geometry:
    """The frames and signed distance fields of one face on a square canvas, all float32 ``(H, W)``.

    ``distance`` maps each part of :data:`PARTS` that the face has to its field, from back to front;
    ``detail`` holds fields that are drawn but not labelled (irises, teeth, the line between the lips, ...).
    """

    face: FaceParameters
    measures: Measures
    size_px: int
    pixel: float
    x: FloatArray
    y: FloatArray
    hx: FloatArray
    hy: FloatArray
    u: FloatArray
    v: FloatArray
    distance: dict[str, FloatArray] = field(default_factory=dict)
    detail: dict[str, FloatArray] = field(default_factory=dict)

    def cover(self, distance: FloatArray, softness: float = 0.0) -> FloatArray:
        """Coverage in [0, 1] of a part: its edge antialiased, and blurred by ``softness`` canvas units."""
        return clip01(0.5 - distance / (self.pixel + softness))

    def window(self, distance: FloatArray, margin: float) -> tuple[tuple[slice, slice, slice], Geometry]:
        """Return the index of the pixels within ``margin`` of a part, and the geometry seen through it.

        The index is (channels, rows, columns) of an image.

        Small parts are drawn through their window, which is most of the speed at larger sizes; where the
        whole canvas is small, finding the window costs more than it saves.
        """
        if self.size_px < 100:
            return (slice(None), slice(None), slice(None)), self
        near = distance < margin + self.pixel
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not len(rows):
            rows = columns = np.zeros(1, dtype=np.intp)
        cut = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        seen = Geometry(
            self.face,
            self.measures,
            self.size_px,
            self.pixel,
            x=self.x[cut],
            y=self.y[cut],
            hx=self.hx[cut],
            hy=self.hy[cut],
            u=self.u[cut],
            v=self.v[cut],
            distance={name: values[cut] for name, values in self.distance.items()},
            detail={name: values[cut] for name, values in self.detail.items()},
        )
        return (slice(None), *cut), seen

    def stroke(self, distance: FloatArray, width: float) -> FloatArray:
        """Coverage in [0, 1] of a line ``width`` canvas units wide along the edge of a part."""
        # A line thinner than a pixel keeps its width and pales instead, so that it looks the same from afar.
        drawn = max(width, self.pixel)
        return self.cover(np.abs(distance) - drawn / 2) * (width / drawn)


def _ellipse(x: FloatArray, y: FloatArray, rx: float, ry: float) -> FloatArray:
    """First-order distance to an ellipse: the implicit radius over its gradient."""
    qx, qy = x / rx, y / ry
    radius = np.sqrt(qx * qx + qy * qy) + 1e-6
    slope = np.sqrt((qx / rx) ** 2 + (qy / ry) ** 2) / radius + 1e-6
    return (radius - 1) / np.maximum(slope, 0.5 / max(rx, ry))


def _box(x: FloatArray, y: FloatArray, rx: float, ry: float, corner: float) -> FloatArray:
    """Distance to a rectangle with rounded corners."""
    qx, qy = np.abs(x) - (rx - corner), np.abs(y) - (ry - corner)
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - corner


def _union(a: FloatArray, b: FloatArray, blend: float) -> FloatArray:
    """Smooth union of two parts; ``blend`` is the width of the fillet."""
    h = np.maximum(blend - np.abs(a - b), 0) / blend
    values: FloatArray = np.minimum(a, b) - h * h * (blend / 4)
    return values


def head_radius(m: Measures, hx: FloatArray, hy: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The egg of the head, an ellipse above, a power curve below: its radius (1 on the outline) and slope."""
    x = hx - m.chin_shift(hy)
    a = m.half_width
    below = hy > 0
    b = np.where(below, m.bottom, m.top).astype(np.float32)
    power = np.where(below, m.jaw_power, 2.0).astype(np.float32)
    height = np.maximum(np.abs(hy) / b, 1e-4)
    raised = height**power
    across = x / a
    radius = np.sqrt(across * across + raised)
    slope_y = 0.5 * power * raised / (height * b)
    return radius, np.sqrt((across / a) ** 2 + slope_y * slope_y) / (radius + 1e-6)


def head_distance(m: Measures, hx: FloatArray, hy: FloatArray) -> FloatArray:
    """First-order distance to the outline of the head."""
    radius, slope = head_radius(m, hx, hy)
    return (radius - 1) / np.maximum(slope, 1.2)


class _Hair(NamedTuple):
    """A hair style: growth of the dome above and aside, where the sides end, and the shape of the opening."""

    above: float
    aside: float
    length: float
    hairline: float
    pointed: float
    skew: float
    flare: float


_HAIR: dict[str, _Hair] = {
    "buzz": _Hair(0.030, 0.012, 0.02, -0.335, 0.00, 0.0, 0.0),
    "short": _Hair(0.085, 0.035, 0.07, -0.300, 0.00, 0.30, 0.0),
    "quiff": _Hair(0.140, 0.022, 0.05, -0.325, 0.00, 0.12, 0.0),
    "bob": _Hair(0.090, 0.085, 0.42, -0.335, 0.10, 0.0, 0.10),
    "long": _Hair(0.080, 0.080, 0.92, -0.345, 0.12, 0.0, 0.16),
    "curly": _Hair(0.170, 0.150, 0.28, -0.300, 0.00, 0.0, 0.0),
    "bun": _Hair(0.045, 0.016, 0.04, -0.345, 0.00, 0.0, 0.0),
}


def _hair(g: Geometry) -> None:
    """Hair is a dome around the head minus the opening of the face; long hair also falls behind the neck."""
    face, m = g.face, g.measures
    if face.hair_style == "bald":
        return
    style = _HAIR[face.hair_style]
    above = style.above * (0.65 + 0.7 * face.hair_volume)
    aside = style.aside * (0.7 + 0.6 * face.hair_volume)
    a, top = m.half_width + aside, m.top + above
    ends = hash_uniforms(8, face.texture_seed, 3)
    # The crown sits on the back of the head and moves against the turn.
    x = g.hx + 0.035 * face.yaw
    y = g.hy
    if face.hair_style in ("bob", "long"):
        wave = 0.012 * face.hair_volume * np.sin(13 * y + 6.28 * float(ends[0]))
        x = x + wave * np.clip(y + 0.2, 0, 1) * np.sign(x)
    if face.hair_style == "curly":
        # Curls are scallops: the radius wobbles with the angle around the head.
        angle = np.arctan2(x, -(y + 0.02))
        bumps = np.abs(np.sin(8 * angle + 6.28 * float(ends[1]))) + 0.5 * np.abs(
            np.sin(13 * angle + 6.28 * float(ends[2]))
        )
        dome = _ellipse(x, y + 0.06, a, (top + style.length) / 2 + 0.10) - 0.030 * (bumps - 0.75)
        length = style.length
        outer = dome
    else:
        upper = _ellipse(x, np.minimum(y, 0), a, top)
        side_width = a * (1 + style.flare * np.clip(y, 0, 1))
        lower = np.abs(x) - side_width
        dome = np.where(y < 0, upper, lower)
        length = style.length + (0.10 if style.length > 0.3 else 0.0) * (face.hair_length - 0.5)
        # Ends are cut in soft points.
        points = 0.018 * np.abs(np.sin(9 * x + 6.28 * float(ends[3]))) if style.length > 0.3 else 0.0
        round_off = (0.5 if style.length > 0.3 else 1.6) * np.maximum(np.abs(x) - 0.8 * a, 0)
        outer = np.maximum(dome, y - length + points + round_off).astype(np.float32)
    if face.hair_style == "quiff":
        lift = 0.5 * a
        tuft = _ellipse(
            x - 0.5 * face.hair_part * a * 0.5, y + top - 0.075, lift, 0.085 + 0.05 * face.hair_volume
        )
        outer = _union(outer, tuft, 0.08)
    if face.hair_style == "bun":
        bun = _ellipse(
            x + 0.05 * face.yaw,
            y + top + 0.045,
            0.135 + 0.03 * face.hair_volume,
            0.10 + 0.03 * face.hair_volume,
        )
        outer = np.minimum(outer, bun)
    # The opening: an arch over the forehead, open downwards; its apex follows the parting.
    apex = 0.55 * face.hair_part * style.pointed / 0.12 * 0.14 if style.pointed else 0.0
    across = 0.5 * (g.u + g.hx) - apex
    across = np.sqrt(across * across + 1e-4) + style.pointed if style.pointed else across
    skew = style.skew * math.copysign(1.0, face.hair_part) * (0.4 + 0.6 * abs(face.hair_part))
    spring = 0.16
    rise = spring - style.hairline
    half = m.half_width * (0.90 if style.length < 0.3 else 0.84) + style.pointed
    up = np.minimum(g.v - spring + skew * g.u * np.clip(1.5 * (spring - g.v) / rise - 0.5, 0, 1), 0)
    opening = _ellipse(across, up, half, rise)
    if face.fringe:
        comb = 0.020 * np.abs(np.sin(16 * g.u + 6.28 * float(ends[4]))) + 0.06 * g.u * math.copysign(
            1.0, face.hair_part
        )
        opening = np.maximum(opening, -0.135 - 0.05 * float(ends[5]) - comb - g.v)
    g.distance["hair"] = np.maximum(outer, -opening) * face.head_scale
    if style.length > 0.2:
        g.distance["hair_back"] = outer * face.head_scale


def _glasses(g: Geometry) -> None:
    face, m = g.face, g.measures
    if face.glasses == "none":
        return
    u = g.u - 0.5 * g.measures.nose_shift(g.v)
    lenses = []
    for eye in m.eyes:
        du, dv = u - eye.u, g.v - eye.v - 0.02
        if face.glasses == "round":
            lenses.append(np.hypot(du, dv) - 0.128)
        elif face.glasses == "square":
            lenses.append(_box(du, dv, 0.135, 0.098, 0.035))
        else:
            lenses.append(_box(du, dv + 0.12 * du * du, 0.146, 0.112, 0.075))
    lens = np.minimum(lenses[0], lenses[1])
    frame = np.abs(lens) - 0.0115
    gap = abs(m.eyes[1].u) - 0.12
    bridge = np.maximum(np.abs(g.v + 0.012 - 2.2 * u * u) - 0.0105, np.abs(u) - gap)
    reach = abs(m.eyes[1].u) + 0.125
    temple = np.maximum(
        np.abs(g.v + 0.012) - 0.0105, np.maximum(reach - np.abs(u), np.abs(g.hx) - m.half_width - 0.005)
    )
    frame = np.minimum(frame, np.minimum(bridge, temple)) * face.head_scale
    g.distance["frame"] = frame
    g.distance["lens_dark" if face.glasses == "sun" else "lens_clear"] = lens * face.head_scale


def _eye(g: Geometry, eye: Eye, side: str) -> None:
    cos, sin = math.cos(eye.tilt), math.sin(eye.tilt)
    du, dv = g.u - eye.u, g.v - eye.v
    eu, ev = cos * du + sin * dv, cos * dv - sin * du
    t = eu / eye.half_width
    arch = 1 - t * t
    steep = np.sqrt(1 + (2 * eye.upper / eye.half_width * np.clip(t, -1.2, 1.2)) ** 2)
    upper = (-eye.upper * arch - ev) / steep
    lower = (ev - eye.lower * arch) / steep
    scale = g.face.head_scale
    g.distance[f"eye_{side}"] = np.maximum(upper, lower) * scale
    g.detail[f"lid_{side}"] = upper * scale
    g.detail[f"span_{side}"] = t
    g.detail[f"iris_{side}"] = (np.hypot(eu - eye.iris_u, ev - eye.iris_v) - eye.iris_radius) * scale


def _brow(g: Geometry, eye: Eye, side: str) -> None:
    face = g.face
    sign = 1.0 if side == "right" else -1.0
    du = (g.u - eye.u * 1.03) * sign
    t = du / 0.108
    thickness = (0.014 + 0.020 * face.brow_thickness) * np.clip(1 - 0.45 * t, 0.35, 1.3)
    dv = g.v - brow_height(g.measures, t)
    g.distance[f"brow_{side}"] = (
        np.maximum(np.abs(dv) - thickness * np.clip(1.15 - t * t * t * t, 0, 1), np.abs(du) - 0.108)
        * face.head_scale
    )


def brow_height(m: Measures, t: FloatArray) -> FloatArray:
    """Height v of the middle of a brow; ``t`` runs from -1 at its inner to 1 at its outer end."""
    face = m.face
    return (
        -0.130 - 0.032 * face.brow_height - 0.008 * face.smile + 0.026 * t * t - 0.042 * face.brow_angle * t
    )


def _nose(g: Geometry) -> None:
    face, m = g.face, g.measures
    u = g.u - m.nose_shift(g.v)
    base = m.nose_base
    wide = 1 + 0.28 * face.nose_width
    rise = np.clip((g.v + 0.02) / base, 0, 1)
    bridge = np.maximum(np.abs(u) - (0.020 + 0.020 * wide * rise), np.maximum(g.v - base + 0.04, 0.0 - g.v))
    tip = _ellipse(u, g.v - base + 0.046, 0.050 * wide, 0.048)
    wings = np.hypot(np.abs(u) - 0.052 * wide, g.v - base + 0.034) - 0.027
    g.distance["nose"] = _union(_union(bridge, tip, 0.03), wings, 0.025) * face.head_scale
    nostril = _ellipse(np.abs(u) - 0.030 * wide, g.v - base + 0.012, 0.016, 0.009)
    g.detail["nostrils"] = nostril * face.head_scale
    g.detail["nose_u"] = u


def _mouth(g: Geometry) -> None:
    m, scale = g.measures, g.face.head_scale
    t = g.u / m.mouth_half
    outer_upper, inner_upper, inner_lower, outer_lower = m.mouth_curves(np.clip(t, -1.3, 1.3))
    ends = np.abs(g.u) - m.mouth_half
    g.distance["mouth"] = np.maximum(np.maximum(outer_upper - g.v, g.v - outer_lower), ends) * scale
    g.detail["mouth_inside"] = np.maximum(np.maximum(inner_upper - g.v, g.v - inner_lower), ends) * scale
    teeth = np.maximum(inner_upper - g.v, g.v - inner_upper - 0.034 * min(max(0.45 + g.face.smile, 0.0), 1.0))
    g.detail["teeth"] = np.maximum(teeth, g.detail["mouth_inside"] / scale) * scale
    line = np.maximum(np.abs(g.v - 0.5 * (inner_upper + inner_lower)) - 0.004, ends)
    g.detail["mouth_line"] = line * scale
    g.detail["mouth_t"] = t
    g.detail["lip_split"] = (g.v - inner_lower) * scale


def _beard(g: Geometry) -> None:
    face, m = g.face, g.measures
    if face.beard == "none":
        return
    if face.beard == "moustache":
        t = g.u / (m.mouth_half * 1.05)
        high = m.nose_base + 0.022 + 0.060 * t * t
        low = m.mouth_v - 0.008 - 0.062 * face.smile * (t * t - 0.35) + 0.055 * t * t * face.beard_length
        g.distance["beard"] = (
            np.maximum(np.maximum(high - g.v, g.v - low), np.abs(g.u) - m.mouth_half * 1.05) * face.head_scale
        )
        return
    side = np.clip(np.abs(g.u) / m.half_width, 0, 1.2)
    line = m.nose_base + 0.045 - 0.235 * side * side * side
    # Room for the lower lip, so that a beard frames the mouth.
    grow = -0.004 if face.beard == "stubble" else 0.012 + 0.05 * face.beard_length
    hanging = head_distance(m, g.hx, g.hy) - grow * np.clip(g.hy / m.bottom, 0, 1) ** 2
    beard = np.maximum(hanging, line - g.v) * face.head_scale
    if face.beard == "stubble":
        g.detail["stubble"] = beard
    else:
        g.distance["beard"] = beard


def _body(g: Geometry) -> None:
    face, m = g.face, g.measures
    body_x = 0.4 * face.head_x
    y = g.y
    chin_x, chin_y = m.to_canvas(np.float32(0), np.float32(m.bottom))
    lean = np.clip((0.95 - y) / (0.95 - float(chin_y)), 0, 1.3)
    neck_x = g.x - (body_x + (float(chin_x) - body_x) * 0.55 * lean)
    neck_width = 0.180 * (1 + 0.10 * face.face_width) + 0.35 * np.maximum(y - 0.52, 0) ** 2
    g.distance["neck"] = np.maximum(np.abs(neck_x) - neck_width, m.centre[1] + 0.2 - y)
    g.detail["neck_t"] = neck_x / neck_width
    x = g.x - body_x
    far = np.abs(x)
    step = np.clip((far - 0.14) / 0.62, 0, 1)
    shoulder = 0.565 + 0.185 * step * step * (3 - 2 * step) + 0.55 * np.maximum(far - 0.66, 0) ** 1.5
    if face.clothes == "v_neck":
        opening = (0.86 * np.abs(x) + 0.5 * (y - 0.87)) * 1.0
    elif face.clothes == "shirt":
        opening = 0.90 * np.abs(x) + 0.44 * (y - 0.80)
    else:
        opening = _ellipse(x, y - 0.55, 0.235, 0.17)
    trunk = (shoulder - y) * 0.93
    g.distance["cloth"] = np.maximum(trunk, -opening)
    g.detail["neckline"] = opening
    g.detail["body_x"] = x
    if face.clothes == "shirt":
        # Two flaps that fold over along the opening.
        collar = np.maximum(opening - 0.115, np.maximum(-opening, y - 0.86 + 0.55 * np.abs(np.abs(x) - 0.14)))
        g.detail["collar"] = np.maximum(collar, 0.50 - y)


def _ears(g: Geometry) -> None:
    face, m = g.face, g.measures
    size = 1 + 0.24 * face.ear_size
    for side, sign in (("left", -1.0), ("right", 1.0)):
        # The ear towards the viewer comes out from behind the cheek, the other hides.
        out = m.half_width + 0.004 - 0.045 * sign * face.yaw
        x, y = g.hx * sign - out, g.hy - 0.045 + 0.04 * face.pitch
        ear = _ellipse(x + 0.25 * y, y, 0.062 * size, 0.105 * size)
        g.detail[f"ear_fold_{side}"] = (
            _ellipse(x + 0.25 * y - 0.006, y + 0.008, 0.036 * size, 0.068 * size) * face.head_scale
        )
        if face.earrings:
            ring = np.hypot(x + 0.045, y - 0.135 * size) - 0.026
            g.detail[f"earring_{side}"] = ring * face.head_scale
            ear = np.minimum(ear, ring)
        g.distance[f"ear_{side}"] = ear * face.head_scale


def build_geometry(face: FaceParameters, size_px: int) -> Geometry:
    """Lay out a face on a square canvas of ``size_px`` pixels."""
    m = Measures(face)
    axis = (((np.arange(size_px) + 0.5) * (2 / size_px) - 1) * VIEW).astype(np.float32)
    x, y = np.broadcast_arrays(axis[None, :], axis[:, None] + np.float32(_VIEW_Y))
    cos, sin = math.cos(m.roll), math.sin(m.roll)
    dx, dy = (x - m.centre[0]) / face.head_scale, (y - m.centre[1]) / face.head_scale
    hx, hy = cos * dx + sin * dy, cos * dy - sin * dx
    du, dv = m.parallax(hx, hy)
    g = Geometry(face, m, size_px, 2 * VIEW / size_px, x, y, hx, hy, hx - du, hy - dv)
    _body(g)
    _ears(g)
    g.distance["face"] = head_distance(m, hx, hy) * face.head_scale
    _beard(g)
    _mouth(g)
    _nose(g)
    for eye, side in zip(m.eyes, ("left", "right"), strict=True):
        _eye(g, eye, side)
        _brow(g, eye, side)
    _glasses(g)
    _hair(g)
    g.distance = {
        part: g.distance[part].astype(np.float32, copy=False) for part in PARTS if part in g.distance
    }
    return g


def landmarks(face: FaceParameters) -> FloatArray:
    """Return the points of :data:`LANDMARK_NAMES`, float32 ``(K, 2)``: x then y, in [0, 1] of the side.

    A value is the position on the canvas, not a pixel number: multiply by the side and subtract 0.5 for pixel
    coordinates. Points are the true ones whether or not hair or sunglasses hide them.
    """
    m = Measures(face)
    in_head: dict[str, tuple[float, float]] = {}
    in_face: dict[str, tuple[float, float]] = {}

    def put(name: str, u: float, v: float, nose: bool = False) -> None:
        in_face[name] = (u + (float(m.nose_shift(np.float64(v))) if nose else 0.0), v)

    # The jaw lies on the outline, which does not slide: walk it by angle in the head frame.
    angles = [math.radians(180 - 22.5 * index) for index in range(9)]
    cosines, sines = np.array([math.cos(a) for a in angles]), np.array([math.sin(a) for a in angles])
    low, high = np.zeros(9), np.full(9, 2.0)
    for _ in range(40):
        radius = 0.5 * (low + high)
        hx, hy = (radius * cosines).astype(np.float32), (radius * sines).astype(np.float32)
        inside = head_distance(m, hx, hy) < 0
        low, high = np.where(inside, radius, low), np.where(inside, high, radius)
    for index in range(9):
        in_head["chin" if index == 4 else f"jaw_{index}"] = (float(hx[index]), float(hy[index]))
    for eye, side, sign in zip(m.eyes, ("left", "right"), (-1.0, 1.0), strict=True):
        cos, sin = math.cos(eye.tilt), math.sin(eye.tilt)
        places = {
            f"eye_{side}_outer": (sign * eye.half_width, 0.0),
            f"eye_{side}_inner": (-sign * eye.half_width, 0.0),
            f"eye_{side}_top": (0.0, -eye.upper),
            f"eye_{side}_bottom": (0.0, eye.lower),
            f"pupil_{side}": (eye.iris_u, eye.iris_v),
        }
        for name, (eu, ev) in places.items():
            put(name, eye.u + cos * eu - sin * ev, eye.v + sin * eu + cos * ev)
        for name, t in (("outer", 1.0), ("middle", 0.0), ("inner", -1.0)):
            height = float(brow_height(m, np.float64(t)))
            put(f"brow_{side}_{name}", eye.u * 1.03 + sign * 0.108 * t, height)
    wide = 1 + 0.28 * face.nose_width
    put("nose_bridge", 0.0, 0.0, nose=True)
    put("nose_tip", 0.0, m.nose_base - 0.046, nose=True)
    put("nose_left", -0.052 * wide - 0.027, m.nose_base - 0.034, nose=True)
    put("nose_right", 0.052 * wide + 0.027, m.nose_base - 0.034, nose=True)
    corner = m.mouth_curves(np.float64(1.0))
    middle = m.mouth_curves(np.float64(0.0))
    put("mouth_left", -m.mouth_half, float(corner[1]))
    put("mouth_right", m.mouth_half, float(corner[1]))
    put("mouth_top", 0.0, float(middle[0]))
    put("mouth_bottom", 0.0, float(middle[3]))
    slid = m.face_to_head(*np.array(list(in_face.values())).T)
    in_head |= {name: (float(x), float(y)) for name, x, y in zip(in_face, *slid, strict=True)}
    stacked = np.stack(m.to_canvas(*np.array([in_head[name] for name in LANDMARK_NAMES]).T), 1)
    stacked[:, 1] -= _VIEW_Y
    return ((stacked / VIEW + 1) / 2).astype(np.float32)
