"""Small things that pages are made of: their frame, pictures inside of them, round ticks, numbers for people.

Imports no torch: a page about many runs is made without it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image, features

from i2i_lightning.loggers.pictures import Pixels


def html_page(title: str, style: str, sections: Iterable[str]) -> str:
    """Return a page in one file, which loads nothing.

    Args:
        title: Its title, as text.
        style: CSS.
        sections: HTML, one below the other; empty ones are left out.
    """
    body = "\n".join(section for section in sections if section)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><link rel='icon' href='data:,'>"
        f"<style>\n{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def data_uri(pixels: Pixels | Image.Image, largest_px: int) -> str:
    """Return a picture, made smaller where a side exceeds ``largest_px``, as a ``data:`` address."""
    image = pixels.copy() if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if max(image.size) > largest_px:
        image.thumbnail((largest_px, largest_px), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if features.check("webp"):
        image.save(stream, format="WEBP", quality=90, method=2)
        kind = "webp"
    else:
        image.save(stream, format="JPEG", quality=90, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the exponential running mean over about ten points, without the bias of its beginning."""
    smoothed, total, weight = [], 0.0, 0.0
    for x, y in points:
        total, weight = 0.9 * total + 0.1 * y, 0.9 * weight + 0.1
        smoothed.append((x, total / weight))
    return smoothed


def ticks(low: float, high: float) -> list[float]:
    """Return two to five round values between ``low`` and ``high``."""
    found: list[float] = []
    for parts in (3, 4):  # of a quarter or more there are always two
        rough = (high - low) / parts
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next((factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough), 10 * unit)
        start = math.ceil(low / step - 1e-9)
        found = [index * step for index in range(start, math.floor(high / step + 1e-9) + 1)]
        if len(found) > 1:
            break
    return found


def number(value: float) -> str:
    """Write a number for people: three significant digits, whole numbers as such."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    text = f"{value:.2e}".replace(".00e", "e") if abs(value) < 1e-3 else f"{value:.3g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text


def duration(seconds: float) -> str:
    """Write a time as ``45 s``, ``3 min 05 s``, ``2 h 05 min`` or ``3 d 4 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
