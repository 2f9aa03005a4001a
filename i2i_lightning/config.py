"""What a configuration is: its root keys, and the functions its files may call.

Importing this module imports neither torch nor Lightning, so that shell completion and ``--cfg`` stay quick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

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


def register() -> None:
    """Make the schema and the resolvers known to Hydra and OmegaConf. Calling it again changes nothing."""
    ConfigStore.instance().store(name="run_config", node=RunConfig)
    resolvers: dict[str, Callable[..., Any]] = {
        "unet_depth": unet_depth,
        "discriminator_channels": discriminator_channels,
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


def halve(value: int | None) -> int:
    """Return half of ``value``, rounded down: ``${halve:${trainer.max_epochs}}``."""
    if not isinstance(value, int):
        raise ValueError(f"cannot halve {value}: give trainer.max_epochs a whole number")
    return value // 2


def toyfaces_channels(task: str, side: str) -> int:
    """Return the channels of one side of a ToyFaces task: ``${toyfaces_channels:${data.task},in}``."""
    from i2i_lightning.data.toyfaces import tasks

    return int(tasks.channels(task, side))
