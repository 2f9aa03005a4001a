"""Animations: WebP and GIF by Pillow, which is always there, and MP4 by PyAV, which is an extra."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, features

from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.data.checks import check_choice
from i2i_lightning.types import UserError

FORMATS = ("webp", "gif", "mp4")
FASTEST_FPS = {"webp": 120, "gif": 50, "mp4": 240}
"""Browsers show GIFs with less than 20 ms for each image at a tenth of that speed."""
MOST_BYTES = 2**30
"""Pillow holds all images of an animation in memory."""
DESCRIPTION = 0x010E
"""The tag of EXIF that holds words about a picture."""


@dataclass(frozen=True)
class Animation:
    """How an animation is written.

    Args:
        format: One of :data:`FORMATS`.
        fps: Images per second.
        loop: Whether it is played again and again; a player of MP4 has its own mind.

    Raises:
        UserError: If this machine cannot write it.
    """

    format: str = "webp"
    fps: float = 24
    loop: bool = True

    def __post_init__(self) -> None:
        check_choice("video.format", self.format, FORMATS)
        fastest = FASTEST_FPS[self.format]
        if not 0.1 <= self.fps <= fastest:
            raise UserError(f"video.fps={self.fps:g}: give 0.1 to {fastest} for {self.format}")
        if self.format == "mp4" and find_spec("av") is None:
            raise UserError(
                "video.format=mp4: needs the package av: pip install 'i2i_lightning[video]'; webp needs none"
            )
        if self.format == "webp" and not features.check("webp"):
            raise UserError("video.format=webp: this Pillow was built without WebP; take gif or mp4")

    def check_size(self, side_px: int, count: int) -> None:
        """Raise ``UserError`` if ``count`` images of this side cannot be written."""
        needed = 3 * side_px**2 * count
        if self.format != "mp4" and needed > MOST_BYTES:
            raise UserError(
                f"video.format={self.format}: {count} images of {side_px} px are {needed / 2**30:.1f} GiB in "
                "memory; take mp4, a lower tile_px, or fewer video.frames"
            )
        if self.format == "mp4" and side_px % 2:
            raise UserError(f"tile_px={side_px}: MP4 takes even sides alone")

    def write(self, path: Path, frames: Iterator[Image.Image], count: int, notes: Mapping[str, str]) -> None:
        """Write ``count`` pictures of one size, with ``notes`` as JSON in the file's comment.

        Raises:
            UserError: If it cannot be written.
        """
        rgb = (frame.convert("RGB") for frame in frames)
        text = json.dumps(notes)
        if self.format == "mp4":
            write_beside(path, lambda beside: self._write_mp4(beside, rgb, text))
        else:
            write_beside(path, lambda beside: self._write_by_pillow(beside, rgb, count, text))

    def _write_by_pillow(self, path: Path, frames: Iterator[Image.Image], count: int, text: str) -> None:
        # Rounded as a sum, so that the whole lasts as long as it should; GIF counts in hundredths.
        unit = 10 if self.format == "gif" else 1
        ends = [round(number * 1000 / self.fps / unit) * unit for number in range(count + 1)]
        durations = [end - start for start, end in itertools.pairwise(ends)]
        exif = Image.Exif()
        exif[DESCRIPTION] = text
        described = {"comment": text} if self.format == "gif" else {"exif": exif, "quality": 90}
        # WebP is played once at 1; GIF once where nothing is said.
        times = {"loop": 0} if self.loop else {} if self.format == "gif" else {"loop": 1}
        next(frames).save(
            path,
            format=self.format.upper(),
            save_all=True,
            append_images=frames,
            duration=durations,
            **described,
            **times,
        )

    def _write_mp4(self, path: Path, frames: Iterator[Image.Image], text: str) -> None:
        import av

        rate = Fraction(self.fps).limit_denominator(1001)
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            container.metadata["comment"] = text
            stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
            stream.pix_fmt = "yuv420p"  # what every player shows
            for number, frame in enumerate(frames):
                if number == 0:
                    stream.width, stream.height = frame.size
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
            container.mux(stream.encode(None))
