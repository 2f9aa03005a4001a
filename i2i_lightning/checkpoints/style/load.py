"""Open style-based generators of every known origin, without executing anything in their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from i2i_lightning.checkpoints.seal import what_is_wrong
from i2i_lightning.checkpoints.style import lernapparat, native, nvidia, psp, rosinality, tensorflow
from i2i_lightning.checkpoints.style.assembly import discriminator_of, generator_of
from i2i_lightning.checkpoints.style.contents import StyleNetwork
from i2i_lightning.checkpoints.style.unpickle import read_pickled
from i2i_lightning.checkpoints.style.values import Missing, Refused
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.networks.stylegan2.discriminator import StyleGAN2Discriminator
from i2i_lightning.types import UserError

EMBEDDED = Path(__file__).with_name("toyfaces.safetensors")
"""The generator that comes with this project."""
NAMES = ("embedded", "ffhq")
"""What may stand in the place of a file: the generator that comes along, and that of the weights folder."""
CHECKPOINTS = ("checkpoints/last.ckpt", "last.ckpt", "checkpoints/best.ckpt", "best.ckpt")
"""Where a run folder has its checkpoint."""
MOBILE_WORDS = "MobileStyleGAN, as published for OpenVINO"
READERS: tuple[Any, ...] = (nvidia, tensorflow, psp, rosinality, lernapparat)
"""Modules that read pickled files: each has ``recognise``, ``generator``, ``discriminator``, ``WORDS``."""
TITLES = {"stylegan2": "StyleGAN2", "stylegan1": "StyleGAN1", "mobile_stylegan": "MobileStyleGAN"}


T = TypeVar("T")


@dataclass(frozen=True)
class LoadedStyle:
    """A generator or discriminator with what is known of it.

    Args:
        network: The network on the CPU, in evaluation mode.
        words: What the file was recognised as.
        averaged: Whether the weights are a moving average over training.
        notes: What was assumed or made up.
        provenance: What the file says of its making.
    """

    network: StyleGenerator | StyleGAN2Discriminator
    words: str
    averaged: bool = False
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] | None = None


@dataclass(frozen=True)
class StyleFile:
    """A file that has been recognised; its networks are built when they are asked for.

    Args:
        where: The file to name.
        words: What it was recognised as.
        read_generator: Returns its generator; takes whether the averaged weights are wanted.
        read_discriminator: Returns its discriminator.
    """

    where: str
    words: str
    read_generator: Callable[[bool], StyleNetwork | StyleGenerator]
    read_discriminator: Callable[[], StyleNetwork]

    def generator(self, averaged: bool = True) -> tuple[StyleGenerator, LoadedStyle]:
        """Build the generator.

        Args:
            averaged: Whether to take the moving average of the weights where there is one, or the last ones.

        Raises:
            UserError: If the file has none, not one that this project has, or the average alone where that is
                not wanted. One line.
        """

        def build() -> tuple[StyleGenerator, LoadedStyle]:
            read = self.read_generator(averaged)
            if isinstance(read, StyleGenerator):
                return read, LoadedStyle(read, self.words)
            if read.averaged and not averaged:
                raise Refused("averaged=false: the file holds the average alone")
            network = generator_of(read)
            return network, LoadedStyle(network, self.words, read.averaged, read.notes, read.provenance)

        return _in_one_line(self.where, build)

    def discriminator(self) -> tuple[StyleGAN2Discriminator, LoadedStyle]:
        """Build the discriminator.

        Raises:
            UserError: If the file has none, or not one that this project has. One line.
        """

        def build() -> tuple[StyleGAN2Discriminator, LoadedStyle]:
            read = self.read_discriminator()
            network = discriminator_of(read)
            return network, LoadedStyle(network, self.words, notes=read.notes, provenance=read.provenance)

        return _in_one_line(self.where, build)

    def has_discriminator(self) -> bool:
        """Return whether there is a discriminator to build, of this project's kind or not.

        Raises:
            UserError: If it is damaged. One line.
        """

        def look() -> bool:
            try:
                self.read_discriminator()
            except Missing:
                return False
            return True

        return _in_one_line(self.where, look)


def load_style_generator(path: str | Path = "embedded", averaged: bool = True) -> StyleGenerator:
    """Return the generator in a file of any known origin: float32, on the CPU, in evaluation mode.

    Nothing in the file is executed. Its configuration is read from the file itself.

    Args:
        path: One of

            * ``embedded``, the generator of small faces that comes with this project, or ``ffhq``, the
              1024 px faces of MobileStyleGAN (``i2i-weights get ffhq_mobile_stylegan``);
            * a safetensors file or a checkpoint of this project, or a run folder;
            * a network pickle of NVIDIA's: stylegan, stylegan2 and stylegan2-ada for TensorFlow,
              stylegan2-ada-pytorch, StyleGAN2 of stylegan3;
            * a checkpoint of rosinality/stylegan2-pytorch, of pSp, e4e or ReStyle, or a StyleGAN1 that
              lernapparat converted;
            * a folder or archive with MobileStyleGAN's graphs.

        averaged: Whether to take the moving average of the weights where there is one, or the last ones.

    Raises:
        UserError: If the file is missing, damaged, would run code, or holds no generator that is known here,
            or is known to hold the average alone where that is not wanted.
    """
    return open_style(path).generator(averaged)[0]


def load_style_discriminator(path: str | Path) -> StyleGAN2Discriminator:
    """Return the discriminator in a file, as :func:`load_style_generator` does the generator.

    Raises:
        UserError: If the file holds none, or not StyleGAN2's, or as for the generator.
    """
    return open_style(path).discriminator()[0]


def open_style(path: str | Path) -> StyleFile:
    """Return what a file with a style-based generator was recognised as.

    Args:
        path: As for :func:`load_style_generator`.

    Raises:
        UserError: If it is none. One line.
    """
    found = _find(path)
    if found is None:
        raise UserError(
            f"{path}: holds no style-based generator of a known kind (StyleGAN1 or 2 of NVIDIA, rosinality,"
            " pSp, e4e, lernapparat or i2i_lightning; MobileStyleGAN)"
        )
    return found


def find_style(path: str | Path) -> StyleFile | None:
    """Return what a file was recognised as; None if it is not of this kind, and some other reader's to judge.

    Raises:
        UserError: If it is damaged and can be of no other kind.
    """
    try:
        return _find(path)
    except UserError:
        if _is_pickle(Path(path)) or str(path) in NAMES:
            raise
        return None


def describe_style(network: StyleGenerator | StyleGAN2Discriminator) -> str:
    """Return ``StyleGAN2 generator, 1024 px, 3 channels (z_dim=512, w_dim=512, ...)``."""
    if isinstance(network, StyleGenerator):
        name, settings = f"{TITLES[network.architecture]} generator", network.arguments
    else:
        name, settings = "StyleGAN2 discriminator", dict(network.arguments)
        if not network.label_dim:
            del settings["mapping_layers"]  # of the label
    told = [
        f"{key}={value}"
        for key, value in settings.items()
        if key not in ("size_px", "channels") and value not in (None, 0)
    ]
    return f"{name}, {network.size_px} px, {network.channels} channels ({', '.join(told)})"


# -------------------- telling files apart


def _is_pickle(path: Path) -> bool:
    return path.suffix.lower() in (".pkl", ".pickle")


def _find(given: str | Path) -> StyleFile | None:
    if str(given) == "embedded":
        if not EMBEDDED.is_file():
            raise UserError(f"embedded: {EMBEDDED} is missing; install i2i_lightning anew")
        return _safetensors(EMBEDDED, "embedded")
    if str(given) == "ffhq":
        return _mobile(None, "ffhq")
    path = Path(given).expanduser()
    if _may_be_mobile(path):
        return _mobile(path, str(given))
    if path.is_dir():
        path = next((path / name for name in CHECKPOINTS if (path / name).is_file()), path)
    if path.is_dir():
        raise UserError(f"{given}: a folder without checkpoints/last.ckpt; give a run folder or a file")
    if not path.is_file():
        raise UserError(f"{given}: no such file; {', '.join(NAMES)} and files are known")
    return _in_one_line(str(path), lambda: _of_file(path))


def _of_file(path: Path) -> StyleFile | None:
    with path.open("rb") as file:
        start = file.read(9)
    where = str(path)
    if path.suffix.lower() == ".safetensors" or (len(start) == 9 and start[4:] == b"\0\0\0\0{"):
        return _safetensors(path, where) if native.style_header(path) is not None else None
    held = read_pickled(path)
    if native.is_checkpoint(held):
        if (wrong := what_is_wrong(path)) is not None:
            raise Refused(f"it is not a whole checkpoint ({wrong})")
        return _checkpoint(held, where)
    for reader in READERS:
        if reader.recognise(held):
            return StyleFile(
                where,
                reader.WORDS,
                lambda averaged, reader=reader: reader.generator(held, averaged),  # type: ignore[misc]
                lambda reader=reader: reader.discriminator(held),  # type: ignore[misc]
            )
    return None


def _safetensors(path: Path, where: str) -> StyleFile:
    return StyleFile(
        where,
        native.SAFETENSORS_WORDS,
        lambda _: native.read_safetensors(path, "generator"),
        lambda: native.read_safetensors(path, "discriminator"),
    )


def _checkpoint(held: dict[str, Any], where: str) -> StyleFile:
    return StyleFile(
        where,
        native.CHECKPOINT_WORDS,
        lambda averaged: native.read_checkpoint_generator(held, averaged),
        lambda: native.read_checkpoint_discriminator(held),
    )


def _may_be_mobile(path: Path) -> bool:
    from i2i_lightning.checkpoints.style.mobile import is_mobile

    return (path.is_dir() or path.suffix.lower() in (".zip", ".whl", ".xml", ".bin")) and is_mobile(path)


def _mobile(path: Path | None, where: str) -> StyleFile:
    from i2i_lightning.checkpoints.style.mobile import load_mobile

    def none() -> StyleNetwork:
        raise Missing("it holds no discriminator")

    return StyleFile(where, MOBILE_WORDS, lambda _: load_mobile(path), none)


def _in_one_line(where: str, action: Callable[[], T]) -> T:
    """Run ``action``, and tell a file's faults as one line that names it."""
    try:
        return action()
    except UserError:
        raise
    except Refused as error:
        raise UserError(f"{where}: not loaded: {error}") from None
    except (Exception, RecursionError) as error:
        # A forged file may fail in ways that nobody has thought of; none of them is its user's to read.
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"{where}: not loaded: it is damaged ({reason})") from error
