"""What i2i-translate takes: a thousand small files, and one large one: ``python -m benchmarks.translate``.

*Small files.* The plain loop is what test scripts usually do, for each file in turn: open with PIL, to float,
through the network, to bytes, save as PNG. Beside it i2i-translate, and the floor under both: decoding and
encoding alone, in as many threads as there are cores, without any network.

*A large file.* 4000 x 3000 px through the command in a process of its own: the highest resident memory above
that of the process with everything imported, against the size of the image as bytes and of one feature map of
the network's first layer; and the worst mean step over 64 px of a line across tile borders, beside the worst
elsewhere (see ``seam_steps``).

Without ``--checkpoint`` the generators are residual ones with random weights: a tiny one for the small files,
so that the files rather than the network are measured, and one of base 8 with 2 blocks for the large one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from i2i_lightning.checkpoints.load import open_generator
from i2i_lightning.data.cache import available_cores
from i2i_lightning.translation.files import Job, Reader, find_inputs, plan_jobs, write_image
from i2i_lightning.translation.folder import Outcome, translate_files
from i2i_lightning.translation.tiling import plan, seam_steps
from i2i_lightning.translation.translator import Translator, find_checkpoint
from i2i_lightning.types import ImageFormat

PEAK = """
import sys
import torch, tqdm, hydra, PIL.Image
import i2i_lightning.translation.folder
from i2i_lightning.commands.translate import APP
def kib(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
before = kib("VmRSS")
status = APP.main(sys.argv[1:])
print("peak MiB", (kib("VmHWM") - before) / 1024)
sys.exit(status)
"""


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return smooth shading with edges in it, uint8 ``(height, width, 3)``."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 216, (6, 8, 3), dtype=np.uint8))
    image = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    for _ in range(40):
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        down, across = int(rng.integers(1, height // 4)), int(rng.integers(1, width // 4))
        image[top : top + down, left : left + across] += rng.integers(-40, 40, 3).astype(np.int16)
    return image.clip(0, 255).astype(np.uint8)


def random_generator(folder: Path, base_channels: int, num_blocks: int) -> Path:
    """Write a checkpoint of a residual generator with random weights."""
    from i2i_lightning.networks.resnet import ResNetGenerator

    torch.manual_seed(0)
    options = {"in_channels": 3, "out_channels": 3, "base_channels": base_channels, "num_blocks": num_blocks}
    generator = {"_target_": "i2i_lightning.networks.resnet.ResNetGenerator", **options}
    state = {f"generator.{key}": value for key, value in ResNetGenerator(**options).state_dict().items()}
    method = {"_target_": "i2i_lightning.methods.pix2pix.Pix2Pix", "generator": generator}
    torch.save({"state_dict": state, "method_config": method}, folder / "random.ckpt")
    return folder / "random.ckpt"


def plain_loop(checkpoint: Path, jobs: list[Job], device: str) -> None:
    """Translate file by file, as test scripts do."""
    network = open_generator(checkpoint).network.to(device).eval()
    for job in jobs:
        pixels = np.array(Image.open(job.source).convert("RGB"))
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device) / 127.5 - 1
        with torch.no_grad():
            out = network(images)
        pixels = ((out[0] + 1) / 2 * 255).permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        job.output.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(job.output)


def files_alone(jobs: list[Job], format: ImageFormat) -> None:
    """Decode and encode in threads, with nothing in between."""
    reader = Reader(format)
    with ThreadPoolExecutor(max(available_cores(), 2)) as pool:
        list(pool.map(lambda job: write_image(job.output, reader.read(job.source), format), jobs))


def small_files(checkpoint: Path, folder: Path, count: int, size_px: int, device: str) -> None:
    source = folder / "small"
    source.mkdir()
    for index in range(count):
        Image.fromarray(picture(size_px, size_px, index)).save(source / f"{index:05}.jpg")
    translator = Translator.load(checkpoint, device=device)
    found = find_inputs(str(source))

    def jobs(name: str) -> list[Job]:
        return plan_jobs(found, str(folder / name), "png", translator.output)

    def ours() -> None:
        outcome = Outcome()
        translate_files(translator, jobs("ours"), Reader(translator.input), outcome)
        assert outcome.translated == count

    print(f"{count:,} files of {size_px} x {size_px} px: images/s, and ms of all cores' time each")
    for name, work in (
        ("plain loop, one by one", lambda: plain_loop(checkpoint, jobs("plain"), device)),
        ("i2i-translate", ours),
        ("decoding and encoding alone", lambda: files_alone(jobs("alone"), translator.output)),
    ):
        began, cpu = time.perf_counter(), time.process_time()
        work()
        seconds, cpu_ms = time.perf_counter() - began, 1000 * (time.process_time() - cpu)
        print(f"  {name:28} {count / seconds:8.1f} {cpu_ms / count:8.1f}", flush=True)


def large_file(checkpoint: Path, folder: Path, tile_px: int, device: str) -> None:
    height, width = 3000, 4000
    Image.fromarray(picture(height, width)).save(folder / "large.png", compress_level=1)
    words = [f"checkpoint={checkpoint}", f"input={folder / 'large.png'}", f"output={folder / 'large'}"]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *words, f"tile_px={tile_px}", f"device={device}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    seconds = time.perf_counter() - began
    peak = float(done.stdout.rpartition("peak MiB")[2])
    translator = Translator.load(checkpoint, device="cpu")
    base = next(p for p in translator.generator.parameters() if p.dim() == 4).shape[0]
    pixels = height * width / 2**20
    tiling = plan(*translator.padded_size(height, width), tile_px, translator.multiple_px)
    made = torch.from_numpy(np.array(Image.open(folder / "large" / "large.png"))).permute(2, 0, 1)
    steps = seam_steps(made, tiling)
    print(f"{width} x {height} px in {tiling.num_tiles} tiles of {tile_px} px, {seconds:.0f} s:")
    print(f"  peak memory                  {peak:8.0f} MiB")
    print(f"  the image as bytes           {3 * pixels:8.0f} MiB")
    print(f"  one map of the first layer   {4 * base * pixels:8.0f} MiB")
    print(f"  worst step at tile borders   {steps.border:8.2f} of 255")
    print(f"  worst step elsewhere         {steps.inside:8.2f} of 255")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="generator of RGB images (random ones)")
    parser.add_argument("--files", type=int, default=1000, help="small files (1000)")
    parser.add_argument("--size-px", type=int, default=256, help="their side (256)")
    parser.add_argument("--tile-px", type=int, default=1024, help="side of a tile (1024)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (cpu)")
    arguments = parser.parse_args()
    print(
        f"torch {torch.__version__}, {available_cores()} cores, {torch.get_num_threads()} threads for torch"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = arguments.checkpoint and find_checkpoint(arguments.checkpoint)
        quick = given or random_generator(folder, base_channels=2, num_blocks=0)
        small_files(quick, folder, arguments.files, arguments.size_px, arguments.device)
        small = given or random_generator(folder, base_channels=8, num_blocks=2)
        large_file(small, folder, arguments.tile_px, arguments.device)


if __name__ == "__main__":
    main()
