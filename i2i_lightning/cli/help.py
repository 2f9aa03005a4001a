"""The ``--help`` page, read from the config files themselves without importing Hydra, torch or Lightning."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from i2i_lightning.cli.folders import conf_dir, group_names, group_options
from i2i_lightning.cli.words import did_you_mean

WIDTH = 100

GROUPS = {
    "experiment": "complete settings",
    "method": "what is trained; brings its own networks, loss and optimiser",
    "operation": "what is done",
    "preset": "how images are searched for",
    "data": "where images come from",
    "generator": "network that translates",
    "discriminator": "network that judges",
    "loss": "objective and the weights of its terms",
    "optimizer": "one per player",
    "scheduler": "how the learning rate falls",
    "trainer": "hardware and length",
    "precision": "number format",
    "callbacks": "pictures, checkpoints, guards",
    "logger": "where curves go, beside a CSV file; several: logger=[wandb,tensorboard]",
    "launcher": "here, or as jobs of SLURM",
    "sweep": "the papers' ablations, and searches; with several runs",
    "variant": "one variant of an ablation",
}
"""The groups in reading order; a folder that is not listed here comes at the end."""

FIXED = {"invert": ("callbacks", "data", "loss", "method")}
"""Groups of a command of which one option alone makes sense, so that its page leaves them out."""

DESCRIBED = {"experiment": "Experiments:", "preset": "Presets:"}
"""Groups whose options have a line each, and its heading."""

KEYS = {
    "train": {
        "trainer.max_epochs": "passes over the data",
        "data.root": "folder of the images",
        "data.direction": "a_to_b or b_to_a: which side of a pair is the input",
        "data.crop_px": "training size in pixels, or [height,width]",
        "data.batch_size": "images per step",
        "loss.lambda_l1": "weight of the L1 term; 0 leaves it out (pix2pix)",
        "loss.lambda_cycle": "weight of both cycle terms (CycleGAN)",
        "loss.lambda_identity": "identity terms, as a multiple of the cycle's weight (CycleGAN)",
        "optimizer.lr": "learning rate",
        "seed": "weights, order and augmentation",
        "name": "folder under outputs/",
        "resume": "continue a run: its folder, or a checkpoint in it; auto finds the newest unfinished one",
        "method.accumulate_batches": "batches that take one step together, as one large one",
        "method.rate_scaling": "linear or sqrt: a higher rate for more devices and accumulated batches",
        "trainer.sync_batchnorm": "true: batch norm over the batches of all devices",
        "callbacks.norms.gradients": "true: norms of each player's gradients, in the curves",
        "warm_start": "begin from weights: a checkpoint, a reference .pth or a folder of them, safetensors",
        "debug": "true shows the traceback of an error (as I2I_DEBUG=1 does)",
    },
    "evaluate": {
        "run": "run folder: its last checkpoint, on its own data",
        "checkpoint": "instead of run: any checkpoint; outside of a run folder say data=... too",
        "split": "train, val or test",
        "metrics": "l1, psnr, ssim, ms_ssim, lpips_alex, lpips_vgg, fid, kid, judge_distance, "
        "pixel_accuracy, class_accuracy, mean_iou; null takes what fits the data",
        "palette": "facades, cityscapes or toyfaces: outputs are label maps in these colours",
        "seeds": "of dropout and noise; of several, mean and deviation",
        "direction": "ab or ba; null evaluates all that the checkpoint holds",
        "test_mode": "train: image statistics and dropout; eval: running statistics",
        "max_images": "the first so many images alone",
        "weights": "folder of the metrics' networks (i2i-weights get all)",
        "data": "its keys may change too (data.root=...); the run's own where nothing is said",
        "output": "folder for the results; null: evaluation/<split>_<checkpoint> in the run folder",
    },
    "translate": {
        "checkpoint": "checkpoint, run folder, reference *_net_G.pth, or safetensors",
        "input": 'file, folder, or quoted pattern: "photos/**/*.jpg"',
        "output": "folder, which keeps names and sub-folders; or a file, for one image",
        "direction": "ab or ba, for a checkpoint that holds both",
        "device": "auto, cpu, cuda, cuda:1, mps",
        "half": "bf16 or fp16: compute in half precision",
        "batch_size": "images of one size together; null takes what fits",
        "tile_px": "larger images are cut into overlapping tiles of this side",
        "resize_px": "resize to this size first, as training did",
        "side": "left or right: half of files that hold a pair A|B",
        "convert": "match converts 8-bit files to the checkpoint's grey or RGB",
        "format": "png, jpg, webp, tiff, npy",
        "seed": "dropout and noise, together with each file's name",
        "overwrite": "replace outputs that are there; else they are skipped",
    },
    "convert": {
        "checkpoint": "file, run folder, or folder of the reference project's latest_net_*.pth",
        "output": "file; .pth, .safetensors, .onnx, .pt (TorchScript; of a StyleGAN, rosinality's) or .ckpt",
        "format": "reference, safetensors, torchscript, onnx, lightning; of a StyleGAN safetensors, "
        "rosinality; null goes by the suffix of output",
        "network": "generator or discriminator",
        "direction": "ab or ba, for a checkpoint that holds both",
        "averaged": "take the moving average of the weights where there is one",
        "dropout": "reference, paper, none: where a reference U-Net has it, which no file says",
        "test_mode": "train or eval: the norms of an exported program",
        "overwrite": "replace an output that is there",
    },
    "sample": {
        "generator": "file, run folder, embedded (ToyFaces, 32 px) or ffhq",
        "seeds": "0-35, or 1,5,7-9; 0-35 where nothing else is to be drawn",
        "truncation": "0.7 is usual for pictures; 1 truncates nothing, 0 is the mean image",
        "cutoff": "truncate so many rows of w_plus alone, from the coarsest",
        "noise": "const (stored with the generator), random (others for each seed) or none",
        "label": "class, for a conditional generator; of several, each seed is drawn in each",
        "grid": "grid.png",
        "files": "each picture as a PNG",
        "latents": "w_plus of each picture as safetensors",
        "mixing.rows": "seeds at the left of a style-mixing matrix",
        "mixing.columns": "seeds at its top",
        "mixing.layers": "coarse, middle, fine, or rows of w_plus: what comes from the top",
        "interpolate": "seeds of a way from one to the next, as an animation",
        "video.space": "w: on straight lines; z: on great arcs",
        "video.frames": "images from one seed to the next",
        "video.fps": "images per second",
        "video.loop": "return to the first seed, and play again and again",
        "video.format": "webp, gif, or mp4 with pip install 'i2i_lightning[video]'",
        "tile_px": "side of a picture in grids, matrices and videos",
        "batch_size": "images synthesised together",
        "device": "auto, cpu, cuda, cuda:1, mps",
        "output": "folder; outputs/sample/<time> where nothing is said",
        "overwrite": "write into a folder that holds files already",
    },
    "invert": {
        "images": "file, folder, quoted pattern, or [a.png,b.png]; null: four unseen toy faces",
        "generator": "file, run folder, embedded (ToyFaces, 32 px) or ffhq",
        "data.batch_size": "images searched for together, on each device",
        "data.fit": "crop takes the middle of images that are not square",
        "data.convert": "match converts 8-bit files to the generator's grey or RGB",
        "data.limit": "the first so many images alone",
        "data.masks": "folder with a mask of each image's name and size, white where it counts",
        "data.label": "class of all images, for a conditional generator",
        "data.start": "folder of first latents by name, with method.start.kind=given",
        "method.stages.w_plus.steps": "of the preset's stage w_plus; its other settings likewise",
        "method.stages.noise": "null leaves that stage out",
        "method.start.kind": "mean, random, mapped, best, previous, given",
        "loss.lambda_mse": "weight of the pixels; each preset has its own",
        "loss.lambda_perceptual": "weight of the features; each preset has its own",
        "loss.lambda_identity": "weight of the identity of faces, by the network of loss.identity.path",
        "loss.identity.path": "your own model_ir_se50.pth, as pSp and e4e use it; null: none",
        "loss.perceptual.name": "auto takes a named substitute where weights are not at hand",
        "callbacks.results.video": "true writes the search of each image as an animation",
        "callbacks.results.snapshots": "pictures of a strip between target and result",
        "callbacks.checkpoints.every_n_batches": "a chunk stopped on its way goes on from the last of them",
        "seed": "of random starts and noise, together with each image's name",
        "name": "folder under outputs/",
        "resume": "go on where a run stopped: its folder, or auto",
    },
    "edit": {
        "generator": "file, run folder, embedded (ToyFaces, 32 px) or ffhq",
        "latents": "latent files, [a.safetensors,b.safetensors], or a run folder of i2i-invert",
        "seeds": "instead of latents: 0,1 or 0-3; the first ones where an operation needs latents",
        "truncation": "psi of seeds; 0.7 is usual for pictures",
        "label": "class, for a conditional generator",
        "convert": "match converts 8-bit pictures to the generator's grey or RGB",
        "align": "crop pictures around their face as FFHQ does, and paste the result back",
        "paste": "of edits of latents: a photo; every picture is put back over its face",
        "effort.latent_steps": "steps of operations that search, on the latent",
        "effort.noise_steps": "and on the noise maps; 0 leaves them alone",
        "effort.blur_px": "how soft masks are",
        "video.frames": "images from one latent to the next; 0 writes no animation",
        "video.format": "webp, gif, or mp4 with pip install 'i2i_lightning[video]'",
        "tile_px": "side of a picture in strips, grids and videos",
        "device": "auto, cpu, cuda, cuda:1, mps",
        "output": "folder; outputs/edit/<time> where nothing is said",
        "overwrite": "write into a folder that holds files already",
    },
}

CROSSOVER = "operation.inside=a.jpg operation.around=b.jpg operation.mask=mask.png"
EXAMPLES = {
    "train": [
        ("the toy job: two cores, a few minutes, no download", ""),
        ("your pairs, left half a, right half b", "data=paired data.root=~/facades data.direction=b_to_a"),
        ("the paper's facades", "experiment=pix2pix_facades data.root=~/facades trainer=gpu precision=bf16"),
        (
            "go on where a run stopped, for longer",
            "resume=outputs/pix2pix/2025-01-31_12-00-00 trainer.max_epochs=40",
        ),
        ("a sweep of the L1 weight", "--multirun loss.lambda_l1=10,100,1000"),
        ("the same as a job array", "loss.lambda_l1=10,100,1000 launcher=slurm launcher.gpus_per_node=1"),
        ("its batch script alone", "loss.lambda_l1=10,100,1000 launcher=slurm launcher.dry_run=true"),
        ("30 trials of Optuna", "experiment=pix2pix_toy sweep=optuna_losses sweep.trials=30"),
        ("curves, pictures and checkpoints to Weights & Biases", "logger=wandb"),
    ],
    "evaluate": [
        ("a run on its own test split", "run=outputs/pix2pix/2025-01-31_12-00-00"),
        ("without any download", "run=outputs/pix2pix/2025-01-31_12-00-00 metrics=[l1,psnr,ssim,ms_ssim]"),
        (
            "a reference checkpoint",
            "checkpoint=latest_net_G.pth data=paired data.root=~/facades data.direction=b_to_a",
        ),
    ],
    "translate": [
        (
            "all images below a folder, in its sub-folders",
            "checkpoint=outputs/pix2pix/2025-01-31_12-00-00 input=photos output=translated",
        ),
        ("one image", "checkpoint=latest_net_G.pth input=photo.jpg output=painting.jpg"),
        (
            "the right halves of pairs A|B, at the size of training",
            "checkpoint=last.ckpt input=facades/test side=right resize_px=256 output=out",
        ),
    ],
    "convert": [
        (
            "a generator of ours for the reference project",
            "checkpoint=outputs/pix2pix/2025-01-31_12-00-00 output=latest_net_G.pth",
        ),
        (
            "a CycleGAN of the reference, to go on training with",
            "checkpoint=~/checkpoints/horse2zebra output=horse2zebra.ckpt",
        ),
        ("a program for other languages", "checkpoint=latest_net_G.pth output=generator.onnx"),
        ("a StyleGAN of NVIDIA's, without its code", "checkpoint=ffhq.pkl output=ffhq.safetensors"),
    ],
    "sample": [
        ("a grid of 36 toy faces, without a download", ""),
        ("a generator of yours", "generator=stylegan2-ffhq-config-f.pt seeds=0-99 truncation=0.7"),
        ("pose from the top, everything else from the left", "mixing.rows=0-4 mixing.columns=10-15"),
        ("a video", "generator=ffhq interpolate=0-5 truncation=0.7 video.frames=60 video.format=mp4"),
    ],
    "invert": [
        ("four unseen toy faces and a morph between two, without a download", ""),
        ("photos, as Image2StyleGAN does", "images=faces generator=ffhq preset=image2stylegan"),
        ("a pattern, on a GPU", 'images="photos/**/*.jpg" data.fit=crop generator=ffhq trainer=gpu'),
        ("W+ alone, for longer", "method.stages.noise=null method.stages.w_plus.steps=2000"),
        ("go on where a run stopped", "resume=outputs/invert/2025-01-31_12-00-00"),
    ],
    "edit": [
        ("from one toy face to another, without a download", ""),
        ("between photos that i2i-invert has embedded", "latents=outputs/invert/2025-01-31_12-00-00"),
        (
            "a published direction",
            "operation=direction operation.file=smile.pt operation.of=ffhq generator=ffhq seeds=0-3",
        ),
        (
            "a smile, as the judge of toy faces sees it",
            "operation=direction operation.find=faces operation.attribute=smile",
        ),
        ("fill a hole", "operation=inpaint operation.image=face.png operation.hole=hole.png"),
        ("a part of another face, in a whole photo", f"operation=crossover align=true {CROSSOVER}"),
    ],
}

PURPOSE = {
    "train": "Train an image-to-image GAN and leave checkpoints, curves and a gallery in outputs/.",
    "evaluate": "Measure a trained generator on a split, beside a copy of the input and the train targets.",
    "translate": "Put a file, a folder or a pattern of images through a trained generator.",
    "convert": "Write a trained network in another format: reference layout, safetensors, TorchScript, ONNX.",
    "sample": "Draw pictures with a style-based generator: grids, style-mixing matrices, interpolations.",
    "invert": "Find the latents of a style-based generator that reproduce images.",
    "edit": "Edit latents and pictures with a style-based generator: morphs, expressions, masks, directions.",
}


def show(program: str, config_name: str, default_experiment: str | None, words: Sequence[str]) -> int:
    """Print the help page, or that of the options in ``words`` (``method=pix2pix``); return the status."""
    conf = conf_dir()
    topics = [word for word in words if word not in ("--help", "-h")]
    if not topics:
        print(page(program, config_name, default_experiment, conf))
        return 0
    for topic in topics:
        try:
            print(topic_page(topic, conf))
        except LookupError as error:
            print(f"{program} --help: {error.args[0]}", file=sys.stderr)
            return 1
    return 0


def page(program: str, config_name: str, default_experiment: str | None, conf: Path) -> str:
    """Return the whole page."""
    defaults = default_choices(conf / f"{config_name}.yaml")
    lines = [PURPOSE.get(config_name, ""), "", f"usage: {program} [group=option ...] [key=value ...] [flags]"]
    if default_experiment:
        lines += ["", f"Without an experiment, method or data it runs experiment={default_experiment}."]
    fixed = FIXED.get(config_name, ())
    groups = [group for group in ordered_groups(conf) if group in defaults and group not in fixed]
    if groups:
        lines += ["", "Groups, and what is taken (*) where nothing is said:"]
    for group in groups:
        names = ", ".join(f"{n}*" if n == defaults[group] else n for n in group_options(conf, group))
        lines += _entry(f"{group}=", f"{GROUPS[group]}: {names}" if group in GROUPS else names)
    experiments = group_options(conf, "experiment") if "experiment" in groups else []
    note = " (an experiment may set its own)" if experiments else ""
    lines += ["", f"Keys used most, with their defaults{note}:"]
    for key, meaning in KEYS.get(config_name, {}).items():
        lines += _entry(f"{key}={default_value(conf, config_name, defaults, key)}", meaning, column=30)
    for group, heading in DESCRIBED.items():
        if group in groups:
            lines += ["", heading]
            for name in group_options(conf, group):
                lines += _entry(name, headline(conf, group, name), column=30)
    lines += ["", "Examples:"]
    for meaning, arguments in EXAMPLES.get(config_name, []):
        lines += [f"  # {meaning}", f"  {program} {arguments}".rstrip()]
    lines += ["", "More:"]
    more = {
        "--cfg job": "the whole config; --info defaults-tree: its sources",
        "--multirun key=1,2": "one run per value",
    }
    if groups:
        options = group_options(conf, groups[-1])
        default = defaults[groups[-1]]
        topic = f"--help {groups[-1]}={default if default in options else options[0]}"
        more = {topic: "the keys of one option, with comments", **more}
    lines += [f"  {program} {words}".ljust(44) + meaning for words, meaning in more.items()]
    lines += [
        f'  eval "$({program} -sc install=bash)"'.ljust(44) + "completion for this shell (also zsh, fish)",
        f"  {program} --hydra-help, --version",
    ]
    return "\n".join(lines)


def topic_page(topic: str, conf: Path) -> str:
    """Return the page on ``group=option``: its file, comments included; or on ``group``: its options.

    Raises:
        LookupError: If there is no such group or option; the first argument is the message.
    """
    group, _, option = topic.partition("=")
    groups = ordered_groups(conf)
    if group not in groups:
        raise LookupError(
            f"{group}: no such group.{did_you_mean(group, groups)}\nThere is: {', '.join(groups)}"
        )
    names = group_options(conf, group)
    if not option:
        lines = [f"{group}: {GROUPS[group]}" if group in GROUPS else group]
        for name in names:
            lines += _entry(f"{group}={name}", headline(conf, group, name), column=30)
        return "\n".join(lines)
    if option not in names:
        raise LookupError(
            f"{topic}: no such option.{did_you_mean(option, names)}\n{group}: {', '.join(names)}"
        )
    text = (conf / group / f"{option}.yaml").read_text(encoding="utf-8").strip()
    return f"conf/{group}/{option}.yaml\n\n{text}\n"


def ordered_groups(conf: Path) -> list[str]:
    """Return the groups under ``conf`` in reading order."""
    found = group_names(conf)
    return [group for group in GROUPS if group in found] + [group for group in found if group not in GROUPS]


def default_choices(root: Path) -> dict[str, str]:
    """Return the option of each group that the root config chooses, as its text says."""
    choices: dict[str, str] = {}
    for entry in yaml.safe_load(root.read_text(encoding="utf-8")).get("defaults", []):
        if isinstance(entry, dict):
            choices |= {str(key): str(value or "") for key, value in entry.items()}
    return {key: value for key, value in choices.items() if not key.startswith("override ")}


def default_value(conf: Path, config_name: str, defaults: dict[str, str], key: str) -> str:
    """Return the value that ``key`` has in the files of the default options; an empty text if it has none."""
    group, _, rest = key.partition(".")
    files = [(conf / f"{config_name}.yaml", key)]
    if rest and group in defaults:
        files.append((conf / group / f"{defaults[group]}.yaml", rest))
        inherited = conf / group / "default.yaml"
        files.append((inherited, rest))
    for file, path in files:
        node: Any = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        for part in path.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node = node.get("path")  # the command line says generator= for generator.path=
        if node is not None:
            return (
                {True: "true", False: "false"}.get(node, str(node)) if isinstance(node, bool) else str(node)
            )
    return ""


def headline(conf: Path, group: str, option: str) -> str:
    """Return the first comment line of an option's file that is not a directive."""
    for line in (conf / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").strip()
    return ""


def _entry(head: str, body: str, column: int = 18) -> list[str]:
    """Lay out ``head`` and ``body`` in two columns, the second one wrapped."""
    width = WIDTH - column
    lines = textwrap.wrap(body, width, break_on_hyphens=False) or [""]
    start = f"  {head}".ljust(column)
    first = [start + lines.pop(0)] if len(start) <= column else [start.rstrip()]
    return first + [" " * column + line for line in lines]
