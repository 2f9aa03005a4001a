"""What a configuration is: its root keys, and the functions its files may call.

Importing this module imports neither torch nor Lightning, so that shell completion and ``--cfg`` stay quick.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Optional  # noqa: UP035 - omegaconf reads these annotations on Python 3.10

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf

MAX_UNET_DEPTH = 8
"""Halvings of the paper's U-Net at 256 px: deeper ones have no room for the usual crops."""
MIN_UNET_DEPTH = 5
"""With fewer halvings the bottleneck sees little of the image; ask for them by ``generator.num_downs``."""

SHELLS = ("bash", "interactive")
"""What SLURM calls a job in which a person types commands: several runs may begin there."""
SWEEP_RECORD = "multirun.yaml"
"""What Hydra's sweepers write into the folder of a sweep: its config."""
NOT_A_DIFFERENCE = ("resume", "launcher", "trainer.devices", "trainer.num_nodes", "sweep.trial")
"""Keys that say how a job of a sweep is started, not what it trains."""


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
    precision: Any = None
    launcher: Any = None
    sweep: Any = None
    """How an Optuna study chooses its trials; nothing in other sweeps."""
    callbacks: Any = None
    logger: Any = None


@dataclass
class InvertConfig(RunConfig):
    """Root keys of ``i2i-invert``: those of a run, and what is to be embedded."""

    images: Any = None
    """File, folder or quoted pattern of the images, or a list of these; null takes toy faces."""


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
    """reference, safetensors, torchscript, onnx or lightning; safetensors or rosinality of a style-based
    generator; null goes by the suffix of output."""
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


@dataclass
class GeneratorFile:
    """The generator of commands that load one."""

    path: str = "embedded"
    """Checkpoint, run folder, ``embedded`` or ``ffhq``."""


@dataclass
class MixingConfig:
    """The style-mixing matrix of ``i2i-sample``."""

    rows: Any = None
    """Seeds at the left."""
    columns: Any = None
    """Seeds at the top."""
    layers: Any = "coarse"
    """What comes from the top: coarse, middle, fine, or rows of w_plus."""


@dataclass
class VideoConfig:
    """The animation of ``i2i-sample``."""

    space: str = "w"
    """w, on straight lines, or z, on great arcs."""
    frames: int = 24
    """Images from one seed to the next."""
    fps: float = 24.0
    """Images per second."""
    loop: bool = True
    """Return to the first seed, and play again and again."""
    format: str = "webp"
    """webp, gif or mp4."""


@dataclass
class SampleConfig:
    """Root keys of ``i2i-sample``."""

    generator: GeneratorFile = field(default_factory=GeneratorFile)
    """What draws; the command line names it ``generator=...``."""
    seeds: Any = None
    """Seeds of the samples: 0-35, or 1,5,7-9."""
    label: Any = None
    """Classes of all pictures, for a conditional generator."""
    truncation: float = 1.0
    """psi of the truncation trick."""
    cutoff: Optional[int] = None  # noqa: UP045
    """Rows of w_plus that are truncated; null truncates all."""
    noise: str = "const"
    """const, random or none."""
    grid: bool = True
    """Write a grid of the samples."""
    files: bool = True
    """Write each sample."""
    latents: bool = True
    """Write the latent of each sample."""
    mixing: MixingConfig = field(default_factory=MixingConfig)
    """Style-mixing matrix."""
    interpolate: Any = None
    """Seeds of a way from one to the next."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """How that way is written."""
    tile_px: Optional[int] = None  # noqa: UP045
    """Side of a picture in grids, matrices and videos."""
    batch_size: Optional[int] = None  # noqa: UP045
    """The most images synthesised together."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    output: Optional[str] = None  # noqa: UP045
    """Folder to write into; null takes outputs/sample/<time>."""
    overwrite: bool = False
    """Write into a folder that holds files already."""
    debug: bool = False
    """Show the traceback of every error."""


@dataclass
class EditVideoConfig:
    """The animation of ``i2i-edit``."""

    frames: int = 24
    """Images from one latent, or end of a strip, to the next; 0 writes no animation."""
    fps: float = 24.0
    """Images per second."""
    loop: bool = True
    """There and back, again and again."""
    format: str = "webp"
    """webp, gif or mp4."""


@dataclass
class EditConfig:
    """Root keys of ``i2i-edit``."""

    operation: Any = None
    """What is done."""
    generator: GeneratorFile = field(default_factory=GeneratorFile)
    """What draws; the command line names it ``generator=...``."""
    latents: Any = None
    """Latent files, or a run folder of ``i2i-invert``."""
    seeds: Any = None
    """Seeds instead of latents: 0,1 or 0-3."""
    truncation: float = 1.0
    """psi of the truncation trick, for seeds."""
    label: Optional[int] = None  # noqa: UP045
    """Class of seeds and of searches, for a conditional generator."""
    convert: str = "none"
    """none, or match to convert 8-bit pictures to the generator's grey or RGB."""
    align: bool = False
    """Crop pictures around their face as FFHQ does, and paste the result back."""
    paste: Optional[str] = None  # noqa: UP045
    """Photo into which every picture of an edit of latents is put back, over its face."""
    seed: int = 0
    """Seed of searches."""
    loss: Any = None
    """Objective of operations that search."""
    effort: Any = None
    """How long and how fast they do."""
    video: EditVideoConfig = field(default_factory=EditVideoConfig)
    """How a latent's way is animated."""
    tile_px: Optional[int] = None  # noqa: UP045
    """Side of a picture in strips, grids and videos."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    output: Optional[str] = None  # noqa: UP045
    """Folder to write into; null takes outputs/edit/<time>."""
    overwrite: bool = False
    """Write into a folder that holds files already."""
    debug: bool = False
    """Show the traceback of every error."""


SCHEMAS: dict[str, type[Any]] = {
    "train": RunConfig,
    "invert": InvertConfig,
    "evaluate": EvaluateConfig,
    "translate": TranslateConfig,
    "convert": ConvertConfig,
    "sample": SampleConfig,
    "edit": EditConfig,
}
"""The root keys of each command, by the name of its root config."""


def schema_name(command: str) -> str:
    """Return the name under which Hydra knows the root keys of ``command``."""
    return "run_config" if SCHEMAS[command] is RunConfig else f"{command}_config"


def register() -> None:
    """Make the schemas and the resolvers known to Hydra and OmegaConf. Calling it again changes nothing."""
    for command, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=schema_name(command), node=schema)
    resolvers: dict[str, Callable[..., Any]] = {
        "unet_depth": unet_depth,
        "discriminator_channels": discriminator_channels,
        "swap_channels": swap_channels,
        "with_channels": with_channels,
        "halve": halve,
        "toyfaces_channels": toyfaces_channels,
        "toyfaces_classes": toyfaces_classes,
        "run_folder": run_folder,
        "run_stamp": run_stamp,
        "unused_folder": unused_folder,
        "sweep_title": sweep_title,
        "job_title": job_title,
        "job_tags": job_tags,
    }
    for name, resolver in resolvers.items():
        # What makes a folder makes one for each config, however often its name is read.
        OmegaConf.register_new_resolver(name, resolver, replace=True, use_cache=resolver is unused_folder)


def run_stamp(now: str) -> str:
    """Return the last part of a run folder's name, ``${run_stamp:${now:...}}``.

    It is the time ``now`` for a run that one command starts. Where a cluster or torchrun starts every process
    by itself, it is the name that they have in common, so that all find the same folder, and find it again
    when the job is put back into the queue.
    """
    return launch_name() or now


def unused_folder(folder: str) -> str:
    """Return ``folder``, or with ``_2``, ``_3`` ... behind it if it is there: ``${unused_folder:...}``.

    The folder is made, so that of several runs that start in one second each has its own. Where a cluster or
    torchrun starts every process by itself, all of them take ``folder``.
    """
    if launch_name() is not None or "LOCAL_RANK" in os.environ:
        return folder
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = Path(folder if number == 1 else f"{folder}_{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return str(path)
    raise AssertionError("counting never ends")


def launch_name() -> str | None:
    """Return what the processes that a cluster or torchrun started have in common; None for others.

    ``slurm_<job>``, ``slurm_<array>_<task>``, ``torchrun_<run id>``.

    Raises:
        ValueError: If torchrun spans machines and was given no name that they share.
    """
    job = os.environ.get("SLURM_JOB_ID")
    in_shell = os.environ.get("SLURM_JOB_NAME") in SHELLS
    if in_shell and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        in_shell = os.isatty(0)  # else the tasks of srun -n 2 bash run.sh
    if job and "SLURM_PROCID" in os.environ and not in_shell:
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        return f"slurm_{array}_{task}" if array and task else f"slurm_{job}"
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch is None:
        return None
    if launch not in ("", "none"):
        return f"torchrun_{launch}"
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        raise ValueError(
            "torchrun on several machines: give hydra.run.dir=... or torchrun --rdzv-id=..., so that all "
            "write into one folder"
        )
    return f"torchrun_{os.getppid()}"  # all processes of a machine have torchrun as their parent


def run_folder() -> str:
    """Return the folder of the run that Hydra has started, else ``outputs``: ``${run_folder:}``."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        return "outputs"
    return str(HydraConfig.get().runtime.output_dir)


def sweep_folder() -> Path | None:
    """Return the folder of the sweep that this run is a job of; None for a run on its own.

    A job that a cluster started, or that is resumed, is a run of its own to Hydra: it lies in a folder where
    a sweep left its record.
    """
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        return None
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return Path(hydra.sweep.dir)
    parent = Path(hydra.runtime.output_dir).parent
    return parent if (parent / SWEEP_RECORD).is_file() else None


def sweep_title() -> str | None:
    """Return what to call the sweep of this run, ``pix2pix/2025-01-31_12-00-00``: ``${sweep_title:}``."""
    folder = sweep_folder()
    if folder is None:
        return None
    # outputs/<name>/multirun/<time>
    above = folder.parent.parent.name if folder.parent.name == "multirun" else ""
    return f"{above}/{folder.name}" if above else folder.name


def job_title() -> str | None:
    """Return what to call this job of a sweep, ``3: loss.lambda_l1=10``: ``${job_title:}``.

    None for a run on its own.
    """
    if sweep_folder() is None:
        return None
    words = job_tags()
    return f"{Path(run_folder()).name}: {','.join(words)}" if words else Path(run_folder()).name


def job_tags() -> list[str]:
    """Return the overrides that tell this job from others of its sweep: ``${job_tags:}``."""
    folder = sweep_folder()
    if folder is None:
        return []
    own = Path(run_folder(), ".hydra", "overrides.yaml")  # of a job that goes on: what it began with
    words = list(OmegaConf.load(own)) if own.is_file() else list(HydraConfig.get().overrides.task)
    record = folder / SWEEP_RECORD
    shared = _normalised(OmegaConf.load(record).hydra.overrides.task if record.is_file() else [])
    differences = [word for word in _normalised(words) if word not in shared]
    return [word for word in differences if word.partition("=")[0] not in NOT_A_DIFFERENCE]


def _normalised(overrides: Sequence[Any]) -> list[str]:
    """Return overrides as Hydra writes them into those of a sweep's job: ``a=false`` as ``a=False``.

    What is itself a list of values to sweep over is left out.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides([str(word) for word in overrides])
    return [
        str(word.input_line)
        if word.is_delete()
        else f"{word.get_key_element()}={word.get_value_element_as_str()}"
        for word in parsed
        if not word.is_sweep_override()
    ]


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


def toyfaces_classes(label: str | None) -> int:
    """Return how many classes a label of ToyFaces has, 0 without: ``${toyfaces_classes:${data.label}}``."""
    from i2i_lightning.data.toyfaces import labels

    return labels.num_classes(label)
