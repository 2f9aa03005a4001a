"""What a configuration is: its root keys, and the functions its files may call.

Importing this module imports neither torch nor Lightning, so that shell completion and ``--cfg`` stay quick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, List, Optional  # noqa: UP035 - omegaconf reads these annotations on Python 3.10

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

MAX_UNET_DEPTH = 8
"""Halvings of the paper's U-Net at 256 px: deeper ones have no room for the usual crops."""
MIN_UNET_DEPTH = 5
"""With fewer halvings the bottleneck sees little of the image; ask for them by ``generator.num_downs``."""


@dataclass
class RunConfig:
    """Root keys of a run, first in the defaults list: a key that is not here dies in composition.

    The nodes of the groups are filled by the files under ``conf/<group>``; their keys are checked against the
    constructors that they name.
    """

    name: str = "unnamed"
    """Folder of the run under ``outputs/``."""
    seed: int = 0
    """Seed of weights, data order and augmentation."""
    resume: Optional[str] = None  # noqa: UP045 - omegaconf reads this annotation on Python 3.10 and up
    """Run folder, or one of its checkpoints, that this run continues."""
    warm_start: Optional[str] = None  # noqa: UP045
    """Checkpoint whose weights this run starts from."""
    debug: bool = False
    """Show the traceback of every error."""

    method: Any = None
    generator: Any = None
    discriminator: Any = None
    loss: Any = None
    optimizer: Any = None
    scheduler: Any = None
    data: Any = None
    trainer: Any = None
    callbacks: Any = None
    logger: Any = None


@dataclass
class TranslateConfig:
    """Root keys of ``i2i-translate``."""

    checkpoint: str = MISSING
    """Generator: a checkpoint of this project or of the reference, safetensors, or a run folder."""
    input: str = MISSING
    """File, folder or quoted pattern of the images to translate."""
    output: str = MISSING
    """Folder to write; or a file, for one image."""
    direction: Optional[str] = None  # noqa: UP045
    """ab or ba, for a checkpoint that holds both."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    half: Optional[str] = None  # noqa: UP045
    """bf16 or fp16: compute in half precision."""
    batch_size: Optional[int] = None  # noqa: UP045
    """The most images, or tiles of one image, translated together."""
    tile_px: Optional[int] = 1024  # noqa: UP045
    """Side of the largest square that is translated in one piece; null never cuts."""
    resize_px: Any = None
    """Size in pixels, or [height,width], to resize to first, as training did."""
    side: Optional[str] = None  # noqa: UP045
    """left or right half of files that hold two images side by side."""
    convert: Optional[str] = None  # noqa: UP045
    """none, or match to convert 8-bit files of other colour modes; null does as training did."""
    format: Optional[str] = None  # noqa: UP045
    """png, jpg, webp, tiff or npy; null takes png, or npy for what PNG cannot hold."""
    seed: int = 0
    """Seed of dropout and noise."""
    test_mode: Optional[str] = None  # noqa: UP045
    """train or eval: norms and dropout at test time; null takes what the checkpoint says."""
    dropout: Any = None
    """reference, paper, none, true or false: reference files do not say where they have dropout."""
    averaged: bool = True
    """Take the moving average of the weights where there is one."""
    overwrite: bool = False
    """Replace outputs that are there."""
    debug: bool = False
    """Show the traceback of every error."""


@dataclass
class ConvertConfig:
    """Root keys of ``i2i-convert``."""

    checkpoint: str = MISSING
    """File to convert, run folder, or folder of the reference project's ``latest_net_*.pth``."""
    output: str = MISSING
    """File to write."""
    format: Optional[str] = None  # noqa: UP045
    """reference, safetensors, torchscript, onnx or lightning; null goes by the suffix of output."""
    network: Optional[str] = None  # noqa: UP045
    """generator or discriminator; null takes the generator where there is one, and all for lightning."""
    direction: Optional[str] = None  # noqa: UP045
    """ab or ba, for a checkpoint that holds both."""
    averaged: bool = True
    """Take the moving average of the weights where there is one."""
    dropout: Any = None
    """reference, paper, none, true or false: where the file does not say, or says it wrong."""
    test_mode: Optional[str] = None  # noqa: UP045
    """train or eval: how the norms of an exported program work; null takes what the checkpoint says."""
    overwrite: bool = False
    """Replace an output that is there."""
    debug: bool = False
    """Show the traceback of every error."""


@dataclass
class EvaluateConfig:
    """Root keys of ``i2i-evaluate``."""

    run: Optional[str] = None  # noqa: UP045
    """Run folder: its last checkpoint is evaluated, on its own data."""
    checkpoint: Optional[str] = None  # noqa: UP045
    """Checkpoint to evaluate: of this project, of the reference project, or safetensors."""
    direction: Optional[str] = None  # noqa: UP045
    """ab or ba, for a checkpoint that holds both."""
    split: str = "test"
    """Images to evaluate on: train, val or test."""
    metrics: Optional[List[str]] = None  # noqa: UP006, UP045
    """What to measure; null takes all that fit the data."""
    palette: Optional[str] = None  # noqa: UP045
    """facades, cityscapes or toyfaces: measure outputs as label maps in these colours."""
    seeds: List[int] = field(default_factory=lambda: [0])  # noqa: UP006
    """Seeds of the noise at test time; of several, mean and deviation are reported."""
    test_mode: Optional[str] = None  # noqa: UP045
    """train or eval: norms and dropout at test time; null takes what the checkpoint says."""
    max_images: Optional[int] = None  # noqa: UP045
    """Evaluate on the first so many images alone."""
    weights: Optional[str] = None  # noqa: UP045
    """Folder of the metrics' weights; null takes $I2I_WEIGHTS, else the user's cache."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    output: Optional[str] = None  # noqa: UP045
    """Folder for the results; null takes evaluation/<split>_<checkpoint> in the run folder."""
    seed: int = 0
    """Seed of the subsets of KID."""
    debug: bool = False
    """Show the traceback of every error."""
    data: Any = None
    """Data set; the run's own where nothing is said."""


SCHEMAS: dict[str, type[Any]] = {
    "train": RunConfig,
    "evaluate": EvaluateConfig,
    "translate": TranslateConfig,
    "convert": ConvertConfig,
}
"""The root keys of each command, by the name of its root config."""


def register() -> None:
    """Make the schemas and the resolvers known to Hydra and OmegaConf. Calling it again changes nothing."""
    for command, schema in SCHEMAS.items():
        name = "run_config" if schema is RunConfig else f"{command}_config"
        ConfigStore.instance().store(name=name, node=schema)
    resolvers: dict[str, Callable[..., Any]] = {
        "unet_depth": unet_depth,
        "discriminator_channels": discriminator_channels,
        "swap_channels": swap_channels,
        "with_channels": with_channels,
        "halve": halve,
        "toyfaces_channels": toyfaces_channels,
        "run_folder": run_folder,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def run_folder() -> str:
    """Return the folder of the run that Hydra has started, else ``outputs``: ``${run_folder:}``."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        return "outputs"
    return str(HydraConfig.get().runtime.output_dir)


def unet_depth(crop_px: int | Sequence[int] | None) -> int:
    """Return how often both sides of ``crop_px`` can be halved, at most 8: how deep a U-Net may be.

    ``${unet_depth:${data.crop_px}}``. Without a fixed crop the answer is 8, the paper's.
    """
    if crop_px is None:
        return MAX_UNET_DEPTH
    sides = [crop_px] if isinstance(crop_px, int) else list(crop_px)
    if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"data.crop_px={crop_px}: give one side in pixels, or [height, width]")
    halvings = min((side & -side).bit_length() - 1 for side in sides)
    if halvings < MIN_UNET_DEPTH:
        step = 2**MIN_UNET_DEPTH
        near = " or ".join(str(size) for size in sorted({max(1, side // step) * step for side in sides}))
        raise ValueError(
            f"data.crop_px={crop_px}: a U-Net halves its image at least {MIN_UNET_DEPTH} times; take "
            f"multiples of {step} px ({near}, ...), or set generator.num_downs"
        )
    return min(halvings, MAX_UNET_DEPTH)


def discriminator_channels(conditional: bool, in_channels: int, out_channels: int) -> int:
    """Return the input channels of a discriminator: it sees (x, y) if ``conditional``, else y alone.

    ``${discriminator_channels:${method.conditional},${data.in_channels},${data.out_channels}}``.
    """
    return out_channels + in_channels if conditional else out_channels


def swap_channels(generator: Any) -> DictConfig:
    """Return a generator's node with its channels exchanged: ``${swap_channels:${generator}}``."""
    return _changed(generator, in_channels=generator["out_channels"], out_channels=generator["in_channels"])


def with_channels(discriminator: Any, in_channels: int) -> DictConfig:
    """Return a discriminator's node for images of another domain.

    ``${with_channels:${discriminator},${data.in_channels}}``.
    """
    return _changed(discriminator, in_channels=in_channels)


def _changed(node: Any, **values: int) -> DictConfig:
    # Hydra builds no objects from plain dicts that a resolver returns.
    changed = OmegaConf.create(OmegaConf.to_container(node, resolve=True))
    assert isinstance(changed, DictConfig)
    changed.update(values)
    return changed


def halve(value: int | None) -> int:
    """Return half of ``value``, rounded down: ``${halve:${trainer.max_epochs}}``."""
    if not isinstance(value, int):
        raise ValueError(f"cannot halve {value}: give trainer.max_epochs a whole number")
    return value // 2


def toyfaces_channels(task: str, side: str) -> int:
    """Return the channels of one side of a ToyFaces task: ``${toyfaces_channels:${data.task},in}``."""
    from i2i_lightning.data.toyfaces import tasks

    return int(tasks.channels(task, side))
