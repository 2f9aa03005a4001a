"""Where an edit is made: the generator, what it was given, and the folder that the results go to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.checkpoints.latents import SUFFIX, Latent, check_belongs, save_latent
from i2i_lightning.data.alignment import paste
from i2i_lightning.editing.local import Effort, embed_latent
from i2i_lightning.editing.mixing import rows_of
from i2i_lightning.methods.inversion import Embedding, InversionLoss, Targets, render
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.sampling.edits.inputs import Picture, Reader
from i2i_lightning.sampling.pictures import to_picture, write_png
from i2i_lightning.sampling.sheets import Layout, Sheet, tile, tile_side
from i2i_lightning.sampling.videos import Animation
from i2i_lightning.types import UserError


@dataclass(frozen=True)
class Cell:
    """A picture of a sheet.

    Args:
        latent: What it shows.
        words: What stands below it.
        file: Its name in ``images/`` and ``latents/``; empty where it is not written there.
    """

    latent: Latent
    words: str = ""
    file: str = ""


@dataclass
class Studio:
    """A generator, what it is to edit, and where to.

    Args:
        generator: What draws, on its device.
        source: What it was loaded by.
        folder: Where everything is written.
        latents: What is to be edited.
        reader: Reads pictures and masks.
        loss: Makes the objective of edits that search; called at most once.
        effort: How long those search.
        animation: How animations are written; None writes none.
        frames: Pictures of an animation from one latent, or end of a strip, to the next.
        label: Class for a conditional generator, (1, K).
        seed: Of searches.
        tile_px: Side of pictures in sheets and animations; None takes one that is good to look at.
        load_generator: Loads another generator, to compare with.
        draws_toy_faces: Whether the generator is known to be of toy faces.
        read_faces: Reads named numbers off images (N, 3, H, W), of toy faces; None where nothing can.
        photo: A face and the picture that it was cut out of: all that is written is put back there, too.
        progress: Called for each picture, with how many more are expected.

    Attributes:
        fingerprint: The generator's.
        notes: What was not done as asked, and why.
        written: What was written, for people.
        figures: Numbers about the result.
    """

    generator: StyleGenerator
    source: str
    folder: Path
    latents: list[Latent]
    reader: Reader
    loss: Callable[[], InversionLoss]
    effort: Effort = field(default_factory=Effort)
    animation: Animation | None = None
    frames: int = 24
    label: Tensor | None = None
    seed: int = 0
    tile_px: int | None = None
    load_generator: Callable[[str], StyleGenerator] | None = None
    draws_toy_faces: bool = False
    read_faces: Callable[[Tensor], Mapping[str, Tensor]] | None = None
    photo: Picture | None = None
    progress: Callable[[], None] = lambda: None
    notes: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fingerprint = self.generator.fingerprint()
        for latent in self.latents:
            check_belongs(latent, self.generator, self.fingerprint)
        self.about = {"generator": Path(self.source).name, "fingerprint": self.fingerprint}

    def take(self, least: int, most: int | None, what: str) -> list[Latent]:
        """Return the latents.

        Raises:
            UserError: If they are not as many as an edit takes.
        """
        count = len(self.latents)
        if count < least or (most is not None and count > most):
            if most is None:
                wanted = f"at least {least}"
            else:
                wanted = f"{least} to {most}" if least < most else f"{least}" if most else "none"
            raise UserError(f"latents: {count} given; this edit takes {wanted}: {what}")
        return self.latents

    # -------------------- drawing

    def draw(self, latent: Latent) -> Tensor:
        """Return the image of a latent of this generator, (1, C, S, S) on the CPU."""
        place = self.generator.w_avg
        tuned = None if latent.tuned is None else [latent.tuned]
        image = render(self.generator, latent.w_plus[None].to(place), latent.maps(place), tuned)
        self.progress()
        return image.float().cpu()

    def embedded(self, picture: Picture, loss: InversionLoss) -> Embedding:
        """Return what a search for a picture's latent found, on the device."""
        targets = Targets(picture.image, [picture.name], self.label)
        return embed_latent(self.generator, targets, loss, self.effort, self.seed)

    def note(self, *notes: str) -> None:
        """Keep notes, each once: several searches say the same of what they share."""
        self.notes += [note for note in dict.fromkeys(notes) if note not in self.notes]

    def edited(self, latent: Latent, w_plus: Tensor, name: str, **settings: Any) -> Latent:
        """Return ``latent`` with another w_plus; noise and tuned weights stay."""
        return replace(
            latent,
            w_plus=w_plus,
            name=name,
            generator=self.source,
            settings={"edited_from": latent.name, **settings},
            metrics={},
        )

    def rows(self, named: Any) -> list[int] | None:
        """Return the rows of w_plus that ``operation.rows`` names; None stays None."""
        return None if named is None else rows_of(named, self.generator.row_names, "operation.rows")

    def middle_layer(self) -> str:
        """Return the last convolution at 32 px, or at half of the side of small images."""
        wanted = min(32, self.generator.size_px // 2)
        names = [name for name in self.generator.layer_names if not name.endswith("image")]
        sizes = [int(name.split(".")[0].removeprefix("b")) for name in names]
        return [name for name, size in zip(names, sizes, strict=True) if size <= wanted][-1]

    # -------------------- writing

    @property
    def side_px(self) -> int:
        """Side of a picture in sheets."""
        return tile_side(self.generator.size_px, self.tile_px)

    def write_sheet(self, name: str, rows: Sequence[Sequence[Cell | None]], margin: bool = False) -> None:
        """Draw a sheet of cells, ``<name>.png``, and write each that has a file.

        Args:
            name: The sheet's name.
            rows: Cells row by row, each row of the same length; None leaves a place empty.
            margin: Whether the first row and column are set apart.
        """
        layout = Layout(max(map(len, rows)), len(rows), self.side_px, margin)
        layout.check("operation", ", or fewer pictures")
        sheet, files = Sheet(layout), 0
        for row, cells in enumerate(rows):
            for column, cell in enumerate(cells):
                if cell is None:
                    continue
                image = self.draw(cell.latent)
                picture = to_picture(image[0])
                sheet.put(column, row, picture, cell.words)
                if cell.file:
                    write_png(self.folder / "images" / f"{cell.file}.png", picture, self.about)
                    save_latent(self.folder / "latents" / f"{cell.file}{SUFFIX}", cell.latent)
                    self.write_pasted(cell.file, image)
                    files += 1
        write_png(self.folder / f"{name}.png", sheet.image, self.about)
        self.written.append(f"{name}.png, {layout.columns} x {layout.rows}")
        if files:
            self.written += [f"images/, {files} PNG files", f"latents/, {files} safetensors files"]
            self.tell_pasted(files)

    def write_moving(
        self,
        name: str,
        rows: Sequence[Sequence[Cell | None]],
        at: Callable[[float], Latent],
        low: float,
        high: float,
        stretches: int = 1,
    ) -> None:
        """Write a sheet and, if one is wanted, an animation, ``<name>.webp`` or of another format.

        Args:
            name: Their name.
            rows: The sheet's cells, as :meth:`write_sheet` takes them.
            at: Returns the latent at a place.
            low: The first place of the animation.
            high: Its last one; that of ``low`` is no animation.
            stretches: How many times ``frames`` pictures lie between the two.

        Raises:
            UserError: If either is too large; nothing has been drawn then.
        """
        animation = None if low == high else self.animation
        places = [low + t * (high - low) for t in self._way(stretches)]
        side = self.tile_px or max(self.generator.size_px, tile_side(self.generator.size_px, None))
        if animation is not None:
            animation.check_size(side, len(places))
        self.write_sheet(name, rows)
        if animation is None:
            return
        path = self.folder / f"{name}.{animation.format}"
        pictures = (tile(to_picture(self.draw(at(place))[0]), side) for place in places)
        animation.write(path, pictures, len(places), self.about)
        self.written.append(f"{path.name}, {len(places)} images, {len(places) / animation.fps:.1f} s")

    def _way(self, stretches: int) -> list[float]:
        """Return where an animation's pictures lie between 0 and 1.

        One that loops goes there and back.
        """
        count = stretches * self.frames + 1
        there = [index / (count - 1) for index in range(count)] if count > 1 else []
        loops = self.animation is not None and self.animation.loop
        return there + there[-2:0:-1] if loops else there

    def write_image(self, name: str, image: Tensor) -> None:
        """Write ``image (1, C, H, W)``, or a mask (1, 1, H, W), as ``<name>.png``."""
        write_png(self.folder / f"{name}.png", to_picture(image[0].float().cpu()), self.about)

    def write_pasted(self, name: str, image: Tensor) -> None:
        """Write ``pasted/<name>.png``: the photo, if any, with ``image (1, C, S, S)`` over its face."""
        if self.photo is not None:
            whole, quad = self.photo.whole, self.photo.quad
            assert whole is not None
            assert quad is not None
            self.write_image(f"pasted/{name}", paste(whole, image.float().cpu(), quad))

    def tell_pasted(self, count: int) -> None:
        """Say that ``count`` pictures were put back, if they were."""
        if self.photo is not None:
            height, width = self.photo.size
            self.written.append(f"pasted/, {count} PNG files, {width} x {height} px")

    def write_pictures(self, name: str, pictures: Sequence[tuple[str, Tensor]]) -> None:
        """Write a strip of images that are drawn already, with their words."""
        sheet = Sheet(Layout(len(pictures), 1, self.side_px))
        for column, (words, image) in enumerate(pictures):
            sheet.put(column, 0, to_picture(image[0].float().cpu()), words)
        write_png(self.folder / f"{name}.png", sheet.image, self.about)
        self.written.append(f"{name}.png, {len(pictures)} x 1")

    def write_record(self, settings: Mapping[str, Any]) -> None:
        """Write ``result.json``: what was asked for, of which generator, and what came of it."""
        record = {
            **self.about,
            "generator": self.source,
            "settings": dict(settings),
            "latents": [latent.name for latent in self.latents],
            "figures": self.figures,
            "notes": self.notes,
            "written": self.written,
        }
        text = json.dumps(record, indent=2, default=str) + "\n"
        write_beside(self.folder / "result.json", text)


def blended(latents: Sequence[Latent], weights: Sequence[float], w_plus: Tensor, studio: Studio) -> Latent:
    """Return a latent between others.

    Noise maps and tuned weights are blended as w_plus is; where one of the latents has none, the generator's
    own take their place.

    Args:
        latents: What it lies between.
        weights: Share of each, which sum to 1.
        w_plus: Where it lies, (L, D).
        studio: Whose generator.
    """
    there = [(latent, weight) for latent, weight in zip(latents, weights, strict=True) if weight != 0]
    names = [latent.name if weight == 1 else f"{weight:.0%} {latent.name}" for latent, weight in there]
    noise, tuned = None, None
    if any(latent.noise is not None for latent, _ in there):
        stored = [map_.cpu() for map_ in studio.generator.noise_maps()]
        maps = [[weight * map_ for map_ in latent.noise or stored] for latent, weight in there]
        noise = [torch.stack(level).sum(0) for level in zip(*maps, strict=True)]
    if any(latent.tuned is not None for latent, _ in there):
        keys = sorted({key for latent, _ in there for key in latent.tuned or {}})
        state = studio.generator.state_dict()
        own = {key: state[key].cpu() for key in keys}
        parts = [(weight, {**own, **(latent.tuned or {})}) for latent, weight in there]
        tuned = {
            key: torch.stack([weight * weights[key] for weight, weights in parts]).sum(0) for key in keys
        }
    settings = {"blended_from": {latent.name: weight for latent, weight in there}}
    return Latent(
        w_plus,
        studio.fingerprint,
        " + ".join(names),
        noise,
        there[0][0].label,
        tuned,
        studio.source,
        settings,
    )
