"""Draw a toy face: photo, cartoon, parsing, instances, regions and edges from one set of distance fields.

Drawing is resolution independent: every edge is antialiased analytically from its signed distance, textures
live on fixed lattices of the canvas and not on pixels, so a face at 512 px is the face at 32 px seen from
nearer by. Light is added up in (nearly) linear light: colours are squared on the way in and their square root
is taken on the way out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from i2i_lightning.data.toyfaces.geometry import (
    CLASS_PALETTE,
    PARTS,
    FloatArray,
    Geometry,
    build_geometry,
    clip01,
    head_radius,
)
from i2i_lightning.data.toyfaces.parameters import FaceParameters, hash_uniforms
from i2i_lightning.types import UserError

ByteArray = npt.NDArray[np.uint8]

Rgb = tuple[float, float, float]

_OUTLINE_WIDTH = 0.017
_BLACK: Rgb = (0.0, 0.0, 0.0)


def _column(rgb: Rgb) -> FloatArray:
    """An sRGB colour as linear light, ``(3, 1, 1)``."""
    return np.square(np.array(rgb, dtype=np.float32)).reshape(3, 1, 1)


def _mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def _over(image: FloatArray, colour: FloatArray, alpha: FloatArray) -> None:
    """Lay ``colour`` (3, 1 | H, 1 | W) over ``image`` (3, H, W) with coverage ``alpha`` (H, W), in place."""
    image += (colour - image) * alpha


def _smooth(low: float, high: float, value: FloatArray) -> FloatArray:
    t = clip01((value - low) * (1 / (high - low)))
    values: FloatArray = t * t * (3 - 2 * t)
    return values


@lru_cache(maxsize=64)
def _tent(size_px: int, cells: int) -> FloatArray:
    """Weights of linear interpolation from ``cells + 1`` lattice points to pixels, (size_px, cells + 1)."""
    position = (np.arange(size_px, dtype=np.float32) + 0.5) * (cells / size_px)
    values: FloatArray = np.maximum(1 - np.abs(position[:, None] - np.arange(cells + 1, dtype=np.float32)), 0)
    return values


@lru_cache(maxsize=4)
def _film(cells: int) -> FloatArray:
    """One sheet of random numbers in [-1, 1], (cells + 1, cells + 1)."""
    return (
        (2 * hash_uniforms((cells + 1) ** 2, cells, 71) - 1).astype(np.float32).reshape(cells + 1, cells + 1)
    )


def _grain(g: Geometry, cells: int) -> FloatArray:
    """Fine noise in [-1, 1] as of :func:`_lattice`, from one sheet that is shifted for each face."""
    seed = g.face.texture_seed
    sheet = np.roll(_film(cells), (seed % (cells + 1), seed // 1000 % (cells + 1)), axis=(0, 1))
    values: FloatArray = _tent(g.size_px, cells) @ sheet @ _tent(g.size_px, cells).T
    return values


def _lattice(g: Geometry, cells_x: int, cells_y: int, stream: int) -> FloatArray:
    """Value noise in [-1, 1]: random numbers on a lattice of the canvas, linearly interpolated, (H, W)."""
    values = hash_uniforms((cells_x + 1) * (cells_y + 1), g.face.texture_seed, stream)
    table = (2 * values - 1).astype(np.float32).reshape(cells_y + 1, cells_x + 1)

    noise: FloatArray = _tent(g.size_px, cells_y) @ table @ _tent(g.size_px, cells_x).T
    return noise


def _strands(g: Geometry, along: FloatArray, frequency: float, stream: int) -> FloatArray:
    """Noise in [-1, 1] that varies along one coordinate, fading out where it is finer than the pixels."""
    table = (2 * hash_uniforms(256, g.face.texture_seed, stream) - 1).astype(np.float32)
    position = along * frequency + 128
    low = np.floor(position)
    share = position - low
    index = low.astype(np.int32) & 255
    share = share * share * (3 - 2 * share)
    noise = table[index] * (1 - share) + table[(index + 1) & 255] * share
    values: FloatArray = noise * min(1.0, 0.8 / (frequency * g.pixel))
    return values


class _Light:
    """The key light of a photo, an ambient light from above, and what they make of a surface."""

    def __init__(self, face: FaceParameters) -> None:
        direction = np.array([0.95 * face.light_x, -(0.20 + 0.55 * face.light_y), 0.80])
        self.x, self.y, self.z = (float(value) for value in direction / np.linalg.norm(direction))
        key = 0.78 + 0.38 * face.light_strength
        warm = face.light_warmth
        self.key = (
            np.array([1 + 0.10 * warm, 1 + 0.02 * warm, 1 - 0.13 * warm], dtype=np.float32).reshape(3, 1, 1)
            * key
        )
        tint = 0.75 + 0.25 * _column(face.backdrop_rgb) / float(_column(face.backdrop_rgb).mean())
        self.ambient = tint * (0.40 - 0.12 * face.light_strength)

    def on(self, nx: FloatArray, ny: FloatArray, nz: FloatArray, wrap: float = 0.18) -> FloatArray:
        """Diffuse light (H, W) in [0, 1] on a surface with this normal; ``wrap`` softens the terminator."""
        facing = nx * self.x + ny * self.y + nz * self.z
        return clip01(np.asarray((facing + wrap) * (1 / (1 + wrap))))

    def lit(self, albedo: FloatArray, diffuse: FloatArray) -> FloatArray:
        return albedo * (self.ambient + self.key * diffuse)


def _normal(g: Geometry, height: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The unit normal of a height field over the canvas, by central differences."""
    down, across = np.gradient(height, g.pixel)
    length = 1 / np.sqrt(across * across + down * down + 1)
    return -across * length, -down * length, length


def _relief(g: Geometry) -> FloatArray:
    """The height of the face: an ellipsoid with sockets, cheeks, nose, lips and chin as smooth bumps."""
    m, face = g.measures, g.face
    radius, _ = head_radius(m, g.hx, g.hy)
    # Steep towards the outline, but never a cliff; beyond it the slope goes on, so that the rim has a proper
    # normal.
    height = np.where(
        radius < 1.02,
        0.42 * np.sqrt(np.maximum(1.10 - radius * radius, 0.05)),
        0.42 * 0.2444 - 1.75 * (radius - 1.02),
    )
    aside = np.abs(g.u)
    eye_u = abs(m.eyes[1].u)

    def bump(du: FloatArray, dv: FloatArray, su: float, sv: float) -> FloatArray:
        return np.exp(-(du * du) / (su * su) - dv * dv / (sv * sv))

    nose_u = g.detail["nose_u"]
    wide = 1 + 0.28 * face.nose_width
    slope = _smooth(-0.16, m.nose_base, g.v)
    ridge = (
        np.exp(-((nose_u / ((0.040 + 0.022 * slope) * wide)) ** 2))
        * slope
        * _smooth(m.nose_base + 0.055, m.nose_base - 0.045, g.v)
    )
    height += 0.100 * ridge
    height += 0.030 * bump(nose_u, g.v - m.nose_base + 0.045, 0.050 * wide, 0.045)
    height -= 0.030 * bump(aside - eye_u, g.v + 0.015, 0.105, 0.065)
    height += (0.022 + 0.020 * max(face.smile, 0.0)) * bump(
        aside - 0.20, g.v - m.nose_base + 0.02, 0.105, 0.085
    )
    height += 0.022 * bump(g.u, g.v - m.bottom + 0.10, 0.10, 0.065)
    height += 0.016 * bump(g.u, g.v - m.mouth_v, m.mouth_half, 0.055)
    height += 0.012 * bump(aside - 0.16, g.v + 0.15, 0.12, 0.05)
    return height


def _backdrop(g: Geometry, light: _Light) -> FloatArray:
    face = g.face
    base = _column(face.backdrop_rgb)
    draws = hash_uniforms(40, face.texture_seed, 11)
    glow = np.exp(-1.1 * ((g.x - 0.5 * face.light_x) ** 2 + (g.y + 0.2) ** 2))
    image = base * (0.50 + 0.55 * glow)
    if face.backdrop == "bokeh":
        for index in range(7):
            cx, cy, radius, tone, strength = (float(value) for value in draws[5 * index : 5 * index + 5])
            disc = g.cover(
                np.hypot(g.x - (2.4 * cx - 1.2), g.y - (2.2 * cy - 1.3)) - (0.10 + 0.22 * radius), 0.05
            )
            colour = base * 1.35 + 0.10 * np.array([tone, 0.5, 1 - tone], dtype=np.float32).reshape(3, 1, 1)
            _over(image, colour, disc * (0.15 + 0.30 * strength))
    elif face.backdrop == "horizon":
        line = 0.05 + 0.35 * float(draws[0])
        ground = _column(_mix(face.backdrop_rgb, (0.22, 0.26, 0.22), 0.55))
        _over(
            image,
            ground * (0.7 + 0.25 * g.y),
            _smooth(line - 0.14, line + 0.14, g.y + 0.06 * _lattice(g, 5, 1, 12)),
        )
    # Only the warmth of the light reaches the backdrop, not its direction.
    return (image * (0.6 + 0.4 * light.key / float(light.key.mean()))).astype(np.float32)


def _hair_colour(g: Geometry, light: _Light, back: bool) -> FloatArray:
    """Strands that fall from the crown, a soft dome of light and the bright band that goes round it."""
    face, m = g.face, g.measures
    albedo = _column(face.hair_rgb)
    if face.hair_style == "curly":
        # Curls: a lattice of small domes, bent out of line.
        bend = 2.2 * _lattice(g, 12, 12, 21)
        curls = np.sin(34 * g.hx + bend) * np.sin(34 * g.hy + 2.2 * _lattice(g, 12, 12, 22))
        fine = 0.75 * curls * min(1.0, 0.05 / g.pixel) + 0.35 * _lattice(g, 30, 30, 23)
        sheen = np.float32(0.12) * np.clip(fine, 0, 1)
    else:
        px, py, place = 0.16 * face.hair_part, -0.78, 0.34
        if face.hair_style == "bun":
            px, py, place = 0.0, -1.0, 0.62
        elif face.hair_style == "quiff":
            px, py, place = 0.45 * face.hair_part, 0.30, 0.78
        dx, dy = g.hx - px, g.hy - py
        angle = np.arctan2(dx, np.abs(dy) + 1e-4)
        radius = np.hypot(dx, dy)
        coarse = _strands(g, angle, 17, 21)
        fine = 0.55 * coarse + 0.45 * _strands(g, angle, 52, 22)
        band = np.exp(-(((radius - place - 0.03 * coarse) / 0.075) ** 2))
        sheen = 0.22 * band * (0.7 + 0.5 * fine)
    tall = (g.hy + 0.02) / (m.top + 0.12)
    wide = g.hx / (m.half_width + 0.12)
    nz = np.sqrt(np.maximum(1.15 - tall * tall - wide * wide, 0.10))
    diffuse = light.on(wide, np.clip(tall, -1, 0.35), nz, 0.35)
    if back:
        return light.lit(albedo * 0.45 * (1 + 0.25 * fine), 0.6 * diffuse)
    colour = light.lit(albedo * (1 + 0.42 * fine), diffuse)
    lift = sheen * (0.25 + 0.75 * diffuse) * (0.35 + 0.65 * face.light_strength)
    values: FloatArray = colour + (0.35 * np.sqrt(albedo) + 0.25) * lift * light.key
    return values


def _cloth_colour(g: Geometry, light: _Light) -> FloatArray:
    face = g.face
    albedo = np.broadcast_to(_column(face.cloth_rgb), (3, g.size_px, g.size_px)).copy()
    x = g.detail["body_x"]
    if face.clothes == "stripes":
        wave = np.abs(((g.y + 0.10 * x * x) * 5.2) % 1.0 - 0.5) - 0.25
        _over(albedo, _column(face.cloth_accent_rgb), g.cover(wave / 5.2, 0.01))
    folds = 0.5 * _lattice(g, 7, 4, 31) + 0.3 * _lattice(g, 15, 9, 32)
    nx = np.clip(0.85 * x, -0.9, 0.9) + 0.25 * folds
    slope = np.clip(1.1 * (0.75 - g.y) + 0.2 * folds, -0.3, 0.7)
    nz = np.sqrt(np.maximum(1 - nx * nx - slope * slope, 0.15))
    colour = light.lit(albedo, light.on(nx, -slope, nz))
    # The hem of the opening turns away from the light.
    colour *= 1 - 0.35 * g.cover(np.abs(g.detail["neckline"]) - 0.012, 0.012)
    if "collar" in g.detail:
        flap = g.detail["collar"]
        colour *= 1 - 0.35 * g.cover(flap - 0.02, 0.05)
        _over(
            colour,
            light.lit(_column(_mix(face.cloth_rgb, (1, 1, 1), 0.22)), light.on(nx, -slope, nz)),
            g.cover(flap, 0.006),
        )
        button = np.hypot(x, (g.y - 0.93) * 1.0) - 0.018
        _over(colour, light.lit(_column((0.95, 0.93, 0.88)), np.float32(0.8)), g.cover(button, 0.004))
    # The head keeps light from the chest.
    return colour * (1 - 0.30 * np.exp(-((x / 0.35) ** 2) - ((g.y - 0.60) / 0.16) ** 2))


def photo(g: Geometry) -> ByteArray:
    """Draw the shaded, photo-like picture, uint8 ``(3, H, W)`` sRGB."""
    face, m = g.face, g.measures
    light = _Light(face)
    image = _backdrop(g, light)
    parts = g.distance
    soft = 0.007
    skin = _column(face.skin_rgb)
    # Skin lets light through: its shadows are redder than its lights.
    shadow_tint = np.array([1.10, 0.92, 0.86], dtype=np.float32).reshape(3, 1, 1)

    if "hair_back" in parts:
        _over(image, _hair_colour(g, light, back=True), g.cover(parts["hair_back"], soft))

    t = np.clip(g.detail["neck_t"], -1.0, 1.0)
    under_chin = 1 - 0.62 * np.clip(1 - (parts["face"] - 0.02) / 0.24, 0, 1) * _smooth(-0.1, 0.3, g.hy)
    neck_light = light.on(0.92 * t, np.float32(0.12), np.sqrt(1 - 0.84 * t * t)) * under_chin
    neck = light.lit(skin * (shadow_tint + (1 - shadow_tint) * neck_light), 0.92 * neck_light)
    _over(image, neck * (0.55 + 0.45 * under_chin), g.cover(parts["neck"], soft))
    _over(image, _cloth_colour(g, light), g.cover(parts["cloth"], soft))

    for side, sign in (("left", -1.0), ("right", 1.0)):
        cut, near = g.window(parts[f"ear_{side}"], 0.01)
        fold = near.cover(np.abs(near.detail[f"ear_fold_{side}"]) - 0.006, 0.02)
        lit = light.on(np.float32(0.55 * sign), np.float32(-0.1), np.float32(0.82), 0.35)
        ear = light.lit(skin * np.array([1.0, 0.86, 0.80], dtype=np.float32).reshape(3, 1, 1), lit) * (
            1 - 0.35 * fold
        )
        _over(image[cut], ear, near.cover(near.distance[f"ear_{side}"], soft))
        if face.earrings:
            ring = near.detail[f"earring_{side}"]
            gold = light.lit(_column((0.88, 0.70, 0.30)), 0.55 + 0.5 * near.cover(ring + 0.018, 0.015))
            _over(image[cut], gold, near.cover(ring))

    # Face: albedo, then light.
    albedo = np.broadcast_to(skin, (3, g.size_px, g.size_px)).copy()
    flush = np.exp(-(((np.abs(g.u) - 0.215) / 0.10) ** 2) - ((g.v - m.nose_base + 0.03) / 0.075) ** 2)
    rosy = _column(_mix(face.skin_rgb, (0.86, 0.30, 0.28), 0.42))
    nose_tip = np.exp(-((g.detail["nose_u"] / 0.06) ** 2) - ((g.v - m.nose_base + 0.045) / 0.05) ** 2)
    _over(albedo, rosy, np.clip((0.15 + 0.65 * face.blush) * flush + 0.22 * nose_tip, 0, 1))
    if face.freckles > 0.72 and face.skin_tone < 0.55:
        places = hash_uniforms(54, face.texture_seed, 41).reshape(18, 3)
        nearest = np.full_like(g.u, 1.0)
        for across, down, size in places.tolist():
            radius = 0.006 + 0.006 * size
            nearest = np.minimum(
                nearest, np.hypot(g.u - 0.62 * (across - 0.5), g.v - 0.05 - 0.15 * down) - radius
            )
        _over(albedo, _column(_mix(face.skin_rgb, (0.48, 0.26, 0.14), 0.55)), 0.6 * g.cover(nearest, 0.008))
    if "stubble" in g.detail:
        grain = 0.8 + 0.2 * _grain(g, 90)
        _over(
            albedo,
            _column(_mix(face.hair_rgb, face.skin_rgb, 0.35)),
            0.42 * grain * g.cover(g.detail["stubble"] + 0.01, 0.06),
        )
    nx, ny, nz = _normal(g, _relief(g))
    diffuse = light.on(nx, ny, nz)
    hollow = np.ones_like(diffuse)
    for side in ("left", "right"):
        lid = g.detail[f"lid_{side}"]
        crease = np.exp(-(((lid - 0.026) / 0.010) ** 2)) * _smooth(
            1.15, 0.7, np.abs(g.detail[f"span_{side}"])
        )
        hollow -= 0.26 * crease
    if "hair" in parts:
        hollow -= 0.42 * np.clip(1 - parts["hair"] / 0.085, 0, 1) ** 2
    under_nose = np.exp(
        -((g.detail["nose_u"] / (0.075 * (1 + 0.28 * face.nose_width))) ** 2)
        - ((g.v - m.nose_base - 0.012) / 0.022) ** 2
    )
    hollow -= 0.16 * under_nose
    hollow -= 0.18 * np.exp(
        -((g.u / (0.75 * m.mouth_half)) ** 2) - ((g.v - m.mouth_v - 0.085 - 0.65 * m.mouth_gap) / 0.022) ** 2
    )
    smile_line = np.abs(np.abs(g.u) - m.mouth_half - 0.045 + 0.30 * (m.mouth_v - g.v)) / 0.016
    fold_reach = np.exp(-(((g.v - 0.5 * (m.nose_base + m.mouth_v)) / 0.07) ** 2))
    hollow -= (0.05 + 0.16 * max(face.smile, 0.0)) * np.exp(-(smile_line**2)) * fold_reach
    shade = np.clip(diffuse * hollow, 0, 1)
    skin_lit = light.lit(albedo * (shadow_tint + (1 - shadow_tint) * _smooth(0.0, 0.75, shade)), shade)
    skin_lit *= 0.62 + 0.38 * hollow
    # Half vector of light and viewer, raised to the 16th: a broad, oily gloss.
    half = np.array([light.x, light.y, light.z + 1])
    half /= np.linalg.norm(half)
    gloss = np.clip(nx * float(half[0]) + ny * float(half[1]) + nz * float(half[2]), 0, 1) ** 16
    skin_lit += (0.055 + 0.055 * face.light_strength) * gloss * hollow * light.key
    skin_lit *= 1 + 0.025 * _grain(g, 80)
    _over(image, skin_lit, g.cover(parts["face"], soft))

    if "beard" in parts:
        grain = _strands(g, g.u * 0.6 + 0.15 * g.v, 46, 51) * 0.5 + 0.35 * _grain(g, 70)
        beard = light.lit(
            _column(face.hair_rgb) * 0.85 * (1 + 0.5 * grain), np.clip(diffuse * 1.0, 0.12, 1) * hollow
        )
        _over(image, beard, g.cover(parts["beard"], 0.022))

    cut, near = g.window(parts["mouth"], 0.02)
    _photo_mouth(near, light, image[cut], diffuse[cut[1:]])
    cut, near = g.window(g.detail["nostrils"], 0.01)
    _over(image[cut], np.float32(0.12) * skin, 0.80 * near.cover(near.detail["nostrils"], 0.010))
    for side in ("left", "right"):
        cut, near = g.window(parts[f"eye_{side}"], 0.03)
        _photo_eye(near, light, image[cut], side)
        cut, near = g.window(parts[f"brow_{side}"], 0.01)
        hairs = 0.90 + 0.10 * _strands(near, near.u + 0.7 * near.v, 130, 61)
        colour = light.lit(
            _column(_mix(face.hair_rgb, (0.18, 0.12, 0.10), 0.45)), 0.7 * diffuse[cut[1:]] + 0.1
        )
        _over(image[cut], colour, 0.92 * hairs * near.cover(near.distance[f"brow_{side}"], 0.014))
    if face.glasses != "none":
        cut, near = g.window(parts["frame"], 0.045)
        _photo_glasses(near, light, image[cut])
    if "hair" in parts:
        _over(image, _hair_colour(g, light, back=False), g.cover(parts["hair"], 0.010))
    # The camera: a little vignetting and the faintest grain.
    image *= 1.04 - 0.10 * (g.x * g.x + g.y * g.y)
    out = 255 * np.sqrt(np.clip(image / (1 + 0.10 * image), 0, 1)) + 1.6 * _grain(g, 128)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _photo_mouth(g: Geometry, light: _Light, image: FloatArray, diffuse: FloatArray) -> None:
    face, m = g.face, g.measures
    lip_rgb = _mix(
        _mix(face.skin_rgb, (0.72, 0.22, 0.24), 0.36),
        (0.74, 0.12, 0.20),
        0.55 * max(0.0, face.lip_redness - 0.35),
    )
    below = _smooth(-0.004, 0.012, g.detail["lip_split"])
    lips = light.lit(_column(lip_rgb), np.clip(diffuse + 0.04, 0, 1)) * (0.78 + 0.22 * below)
    shine = np.exp(
        -((g.detail["mouth_t"] / 0.45) ** 2) - ((g.detail["lip_split"] - 0.45 * m.lips[1]) / 0.010) ** 2
    )
    _over(image, lips + 0.10 * shine * light.key, g.cover(g.distance["mouth"], 0.010))
    if m.mouth_gap > 0.004:
        inside = g.cover(g.detail["mouth_inside"], 0.006)
        tongue = np.exp(-((g.detail["mouth_t"] / 0.5) ** 2) - ((g.detail["lip_split"] + 0.004) / 0.022) ** 2)
        _over(image, _column((0.26, 0.07, 0.08)) + 0.16 * tongue * _column((0.9, 0.35, 0.36)), inside)
        edge = 1 - 0.35 * np.clip(np.abs(g.detail["mouth_t"]), 0, 1) ** 2
        _over(image, light.lit(_column((0.95, 0.92, 0.86)), 0.72 * edge), g.cover(g.detail["teeth"], 0.008))
    else:
        _over(image, 0.30 * _column(lip_rgb), 0.8 * g.cover(g.detail["mouth_line"], 0.010))


def _photo_eye(g: Geometry, light: _Light, image: FloatArray, side: str) -> None:
    face = g.face
    inside = g.cover(g.distance[f"eye_{side}"], 0.005)
    lid, span, iris = g.detail[f"lid_{side}"], g.detail[f"span_{side}"], g.detail[f"iris_{side}"]
    lid_shadow = 0.50 + 0.50 * np.clip(-lid / 0.040, 0, 1)
    ball = 1 - 0.25 * span * span
    white = light.lit(_column((0.95, 0.93, 0.91)), 0.70 * lid_shadow * ball) * (0.6 + 0.4 * lid_shadow)
    _over(image, white, inside)
    radius = (g.measures.eyes[0].iris_radius) * face.head_scale
    depth = np.clip(-iris / radius, 0, 1)
    glow = _column(face.iris_rgb) * (
        0.40 + 0.75 * _smooth(0.0, 0.35, depth) * (0.75 + 0.5 * np.clip((g.v - 0.0) / 0.05, -0.5, 1))
    )
    _over(image, light.lit(glow, lid_shadow), inside * g.cover(iris, 0.006))
    _over(image, np.full((3, 1, 1), 0.004, dtype=np.float32), inside * g.cover(iris + 0.55 * radius, 0.006))
    eye = g.measures.eyes[0 if side == "left" else 1]
    spark_u = eye.u + eye.iris_u + 0.35 * eye.iris_radius * (1 if light.x > 0 else -1)
    spark_v = eye.v + eye.iris_v - 0.35 * eye.iris_radius
    spark = (np.hypot(g.u - spark_u, g.v - spark_v) - 0.0135) * face.head_scale
    _over(image, np.full((3, 1, 1), 0.95, dtype=np.float32), inside * g.cover(spark, 0.004))
    reach = _smooth(1.16, 0.98, np.abs(span))
    lash = g.cover(np.abs(lid - 0.002) - 0.0095, 0.006) * reach
    _over(image, _column((0.12, 0.08, 0.08)), 0.9 * lash)
    _over(
        image,
        _column(_mix(face.skin_rgb, (0.35, 0.12, 0.10), 0.6)),
        0.45 * g.stroke(g.distance[f"eye_{side}"], 0.012) * (1 - lash),
    )


def _photo_glasses(g: Geometry, light: _Light, image: FloatArray) -> None:
    face, parts = g.face, g.distance
    lens = parts["lens_dark" if face.glasses == "sun" else "lens_clear"]
    inside = g.cover(lens, 0.004)
    streak = _smooth(0.05, 0.11, np.abs((g.u + 0.8 * g.v + 0.06) % 0.34 - 0.17))
    glare = (1 - streak) * _smooth(0.16, -0.10, g.v)
    if face.glasses == "sun":
        _over(image, _column((0.10, 0.10, 0.12)) + 0.05 * glare * light.key, 0.96 * inside)
    else:
        _over(image, np.float32(0.55) * light.key, inside * (0.05 + 0.10 * glare))
    # The frame throws a thin shadow on the skin below it.
    image *= 1 - 0.22 * g.cover(np.abs(lens - 0.022) - 0.012, 0.02) * g.cover(parts["face"])
    lit = light.on(np.float32(0.0), np.float32(-0.35), np.float32(0.93))
    rim = _column(face.glasses_rgb)
    _over(
        image,
        light.lit(rim, lit) + 0.10 * g.cover(parts["frame"] + 0.007, 0.006) * light.key,
        g.cover(parts["frame"], 0.003),
    )


def _flat_colours(face: FaceParameters) -> dict[str, Rgb]:
    """The one sRGB colour of each part in the cartoon and in the colour regions."""
    dark = _mix(face.hair_rgb, _BLACK, 0.25)
    lips = _mix(face.skin_rgb, (0.80, 0.16, 0.22), 0.40 + 0.30 * face.lip_redness)
    ear = _mix(face.skin_rgb, (0.86, 0.30, 0.28), 0.12)
    return {
        "backdrop": face.backdrop_rgb,
        "hair_back": _mix(face.hair_rgb, _BLACK, 0.30),
        "neck": _mix(face.skin_rgb, (0.45, 0.16, 0.10), 0.22),
        "cloth": face.cloth_rgb,
        "ear_left": ear,
        "ear_right": ear,
        "face": face.skin_rgb,
        "beard": _mix(face.hair_rgb, _BLACK, 0.10),
        "mouth": lips,
        "nose": _mix(face.skin_rgb, (0.80, 0.36, 0.26), 0.20),
        "lens_clear": _mix(face.skin_rgb, (0.85, 0.95, 1.0), 0.35),
        "eye_left": _mix((0.96, 0.96, 0.96), face.iris_rgb, 0.5),
        "eye_right": _mix((0.96, 0.96, 0.96), face.iris_rgb, 0.5),
        "brow_left": dark,
        "brow_right": dark,
        "lens_dark": (0.13, 0.13, 0.16),
        "frame": face.glasses_rgb,
        "hair": face.hair_rgb,
    }


def _lines(g: Geometry, part: str) -> FloatArray:
    """Coverage (H, W) of the pen strokes that belong to a part: its outline, and details drawn inside it."""
    distance = g.distance[part]
    width = _OUTLINE_WIDTH
    if part == "nose":
        # Only the lower edge of the nose is drawn.
        low = _smooth(g.measures.nose_base - 0.075, g.measures.nose_base - 0.04, g.v)
        values: FloatArray = np.maximum(
            g.stroke(distance, width * 0.8) * low, 0.8 * g.cover(g.detail["nostrils"])
        )
        return values
    if part == "lens_clear" or part == "lens_dark":
        return np.zeros_like(distance)
    if part.startswith("brow"):
        return 0.0 * distance
    line = g.stroke(distance, width)
    if part.startswith("eye"):
        side = part[4:]
        inside = g.cover(distance)
        line = np.maximum(line * 0.7, inside * g.stroke(g.detail[f"iris_{side}"], width * 0.7))
        line = np.maximum(
            line,
            g.stroke(g.detail[f"lid_{side}"], 0.026) * _smooth(1.14, 1.0, np.abs(g.detail[f"span_{side}"])),
        )
    elif part == "mouth":
        split = (
            g.stroke(g.detail["mouth_inside"], width * 0.7) * g.cover(distance)
            if g.measures.mouth_gap > 0.004
            else g.cover(g.detail["mouth_line"])
        )
        line = np.maximum(0.8 * line, split)
    elif part == "cloth":
        if "collar" in g.detail:
            line = np.maximum(line, g.stroke(g.detail["collar"], width * 0.8) * g.cover(distance))
    elif part.startswith("ear"):
        side = part[4:]
        line = np.maximum(line, 0.6 * g.stroke(g.detail[f"ear_fold_{side}"], width * 0.6) * g.cover(distance))
    return line


def cartoon(g: Geometry) -> ByteArray:
    """Draw the same face in flat colours with dark outlines, uint8 ``(3, H, W)`` sRGB."""
    face, m = g.face, g.measures
    flat = _flat_colours(face)
    image = np.broadcast_to(
        np.array(flat["backdrop"], dtype=np.float32).reshape(3, 1, 1), (3, g.size_px, g.size_px)
    ).copy()

    def fill(rgb: Rgb, alpha: FloatArray) -> None:
        _over(image, np.array(rgb, dtype=np.float32).reshape(3, 1, 1), alpha)

    halo = np.hypot(g.x, g.y + 0.05) - 0.86
    fill(_mix(face.backdrop_rgb, (1, 1, 1), 0.30), g.cover(halo))
    for part, distance in g.distance.items():
        inside = g.cover(distance)
        if part == "lens_clear":
            fill((0.85, 0.95, 1.0), 0.30 * inside)
            continue
        if part == "nose":
            fill(flat["nose"], 0.45 * inside)
        elif part.startswith("eye"):
            side = part[4:]
            fill((0.98, 0.98, 0.97), inside)
            iris = g.detail[f"iris_{side}"]
            radius = m.eyes[0].iris_radius * face.head_scale
            fill(_mix(face.iris_rgb, (1, 1, 1), 0.12), inside * g.cover(iris))
            fill((0.06, 0.05, 0.07), inside * g.cover(iris + 0.5 * radius))
            eye = m.eyes[0 if side == "left" else 1]
            spark = np.hypot(g.u - eye.u - eye.iris_u + 0.015, g.v - eye.v - eye.iris_v + 0.017) - 0.015
            fill((1.0, 1.0, 1.0), inside * g.cover(spark))
        elif part == "mouth":
            fill(flat["mouth"], inside)
            if m.mouth_gap > 0.004:
                fill((0.40, 0.10, 0.13), g.cover(g.detail["mouth_inside"]))
                fill((0.99, 0.98, 0.95), g.cover(g.detail["teeth"]))
        else:
            fill(flat[part], inside)
        if part == "face":
            flush = np.hypot((np.abs(g.u) - 0.225) / 1.25, g.v - m.nose_base + 0.015) - 0.052
            fill(_mix(face.skin_rgb, (0.95, 0.35, 0.35), 0.45), (0.25 + 0.5 * face.blush) * g.cover(flush))
            if "stubble" in g.detail:
                fill(_mix(face.skin_rgb, face.hair_rgb, 0.35), 0.7 * g.cover(g.detail["stubble"]))
        elif part == "cloth":
            if face.clothes == "stripes":
                wave = np.abs(((g.y + 0.10 * g.detail["body_x"] ** 2) * 5.2) % 1.0 - 0.5) - 0.25
                fill(face.cloth_accent_rgb, inside * g.cover(wave / 5.2))
            if "collar" in g.detail:
                fill(_mix(face.cloth_rgb, (1, 1, 1), 0.3), inside * g.cover(g.detail["collar"]))
        elif part.startswith("ear_") and face.earrings:
            fill((0.95, 0.76, 0.30), g.cover(g.detail[f"earring_{part[4:]}"]))
        elif part == "hair":
            # One flat glint, the cartoonist's sign for hair.
            glint = np.abs(np.hypot(g.hx - 0.12 * face.light_x, g.hy + 0.02) - 0.44) - 0.022
            arc = np.abs(np.arctan2(g.hx - 0.25 * math.copysign(1, face.light_x), -g.hy)) - 0.28
            fill(_mix(face.hair_rgb, (1, 1, 1), 0.28), inside * g.cover(np.maximum(glint, 0.44 * arc)))
        ink = _mix(_mix(flat[part], _BLACK, 0.78), (0.10, 0.06, 0.10), 0.5)
        fill(ink, _lines(g, part))
    drawn: ByteArray = np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)
    return drawn


def edges(g: Geometry) -> ByteArray:
    """Draw the pen lines of the cartoon alone, uint8 ``(1, H, W)``: black (0) on white (255)."""
    ink = np.zeros((g.size_px, g.size_px), dtype=np.float32)
    for part, distance in g.distance.items():
        if part not in ("nose", "lens_clear"):
            ink *= 1 - g.cover(distance)
        line = g.cover(distance) if part.startswith("brow") else _lines(g, part)
        np.maximum(ink, line, out=ink)
    return np.rint(255 * (1 - ink))[None].astype(np.uint8)


def _front(g: Geometry) -> npt.NDArray[np.intp]:
    """For each pixel the position in :data:`PARTS` of the foremost part at its centre, or -1: (H, W)."""
    front = np.full((g.size_px, g.size_px), -1, dtype=np.intp)
    order = list(PARTS)
    for part, distance in g.distance.items():
        front[distance < 0] = order.index(part)
    return front


_PART_CLASSES = np.array([*(entry[0] for entry in PARTS.values()), 0], dtype=np.uint8)
_PART_INSTANCES = np.array([*(entry[1] for entry in PARTS.values()), 0], dtype=np.uint8)


def parsing(g: Geometry) -> ByteArray:
    """Return the class of each pixel, uint8 ``(H, W)``, an index into ``CLASS_NAMES``."""
    return _PART_CLASSES[_front(g)]


def instances(g: Geometry) -> ByteArray:
    """Return the instance id of each pixel, uint8 ``(H, W)``, an index into ``INSTANCE_NAMES``."""
    return _PART_INSTANCES[_front(g)]


def regions(g: Geometry) -> ByteArray:
    """Return each part filled with its one colour, without antialiasing, uint8 ``(3, H, W)`` sRGB."""
    flat = _flat_colours(g.face)
    colours = np.array([*(flat[part] for part in PARTS), flat["backdrop"]])
    table = np.rint(255 * colours).astype(np.uint8)
    return np.ascontiguousarray(table[_front(g)].transpose(2, 0, 1))


def paint(index: ByteArray) -> ByteArray:
    """Paint a parsing map ``(H, W)`` in the fixed palette, uint8 ``(3, H, W)``.

    Raises:
        UserError: If an index is no class.
    """
    if int(index.max(initial=0)) >= len(CLASS_PALETTE):
        raise UserError(f"parsing index {int(index.max())}: the classes are 0 to {len(CLASS_PALETTE) - 1}")
    table = np.array(CLASS_PALETTE, dtype=np.uint8)
    return np.ascontiguousarray(table[index].transpose(2, 0, 1))


_DRAWERS: dict[str, Callable[[Geometry], ByteArray]] = {
    "photo": photo,
    "cartoon": cartoon,
    "parsing": parsing,
    "instances": instances,
    "regions": regions,
    "edges": edges,
    "palette": lambda g: paint(parsing(g)),
}

KINDS = tuple(_DRAWERS)
"""What :func:`render` can draw."""


def render(face: FaceParameters, size_px: int, kinds: Sequence[str] = KINDS) -> dict[str, ByteArray]:
    """Draw a face in several ways that agree to the pixel.

    Args:
        face: What to draw.
        size_px: Side of the square image; meant for 32 to 512.
        kinds: Any of :data:`KINDS`.

    Returns:
        uint8 arrays by kind: ``(3, H, W)`` for photo, cartoon, regions and palette, ``(1, H, W)`` for edges
        and ``(H, W)`` for the index maps parsing and instances.

    Raises:
        UserError: If a kind is unknown or the size is below 8 px.
    """
    unknown = [kind for kind in kinds if kind not in _DRAWERS]
    if unknown:
        raise UserError(f"cannot draw {', '.join(unknown)}: choose from {', '.join(KINDS)}")
    if size_px < 8:
        raise UserError(f"size_px={size_px}: a toy face needs at least 8 px, and is meant for 32 to 512")
    geometry = build_geometry(face, size_px)
    return {kind: _DRAWERS[kind](geometry) for kind in kinds}
