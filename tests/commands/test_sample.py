"""i2i-sample from the shell's words to pictures, matrices and animations, and everything that goes wrong."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from i2i_lightning.checkpoints import save_style_generator
from i2i_lightning.checkpoints.latents import load_latent
from i2i_lightning.checkpoints.style.load import EMBEDDED
from i2i_lightning.cli import arguments
from i2i_lightning.commands import generators
from i2i_lightning.commands.sample import APP, prepare
from i2i_lightning.networks.mobile_stylegan import MobileStyleGAN
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.sampling import sampler as sampling
from i2i_lightning.sampling.folder import Gallery
from i2i_lightning.sampling.pictures import to_picture
from i2i_lightning.sampling.request import Request
from i2i_lightning.sampling.sampler import Sampler
from i2i_lightning.sampling.sheets import Layout, grid_layout, tile_side
from i2i_lightning.types import UserError

Shell = Callable[..., tuple[int, str]]


def tiny(label_dim: int = 0, channels: int = 3) -> StyleGenerator:
    torch.manual_seed(0)
    generator = StyleGAN2Generator(
        32, channels, z_dim=8, w_dim=8, label_dim=label_dim, channel_base=256, channel_max=8
    )
    for name, value in generator.named_parameters():
        if name.endswith("noise_strength"):
            value.data.fill_(0.3)
    generator.mapping.w_avg.normal_()
    return generator


GENERATORS = {"tiny": lambda: tiny(), "classes": lambda: tiny(3), "grey": lambda: tiny(channels=1)}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("I2I_DEBUG", raising=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each of the small generators."""
    folder = tmp_path_factory.mktemp("models")
    for name, build in GENERATORS.items():
        save_style_generator(folder / name, build())
    return folder


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], models: Path) -> Shell:
    """Run the command, on ``tiny`` where nothing else is said; return its exit status and what it printed."""

    def path_of(name: str) -> str:
        return str(models / name) if name in GENERATORS else name

    def run(*words: str) -> tuple[int, str]:
        named = [word.partition("=")[2] for word in words if word.startswith("generator=")] or ["tiny"]
        others = [word for word in words if not word.startswith("generator=")]
        paths = ",".join(map(path_of, named[0].split(",")))
        status = APP.main(["device=cpu", f"generator={paths}", *others])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path))


def expected(seed: int, **options: Any) -> np.ndarray:
    ((_, _, image),) = Sampler(tiny(), **options).samples([seed])
    return np.asarray(to_picture(image))


def near(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether pictures are the same but for the rounding of a batch."""
    return one.shape == other.shape and np.abs(one.astype(int) - other).max() <= 1


# Samples.


def test_nothing_said_draws_a_grid_of_36(shell: Shell) -> None:
    status, text = shell()
    assert status == 0, text
    (folder,) = Path("outputs/sample").iterdir()
    assert text.startswith(f"{folder}: tiny, 32 px, fingerprint {tiny().fingerprint()}, ")
    assert text.splitlines()[1:] == [
        "  grid.png, 6 x 6",
        "  images/, 36 PNG files",
        "  latents/, 36 safetensors files",
    ]
    assert len(list((folder / "images").iterdir())) == 36
    assert sorted(path.name for path in folder.iterdir()) == ["grid.png", "images", "latents"]
    grid = Image.open(folder / "grid.png")
    assert grid.size == grid_layout(36, 128).size
    for seed in (0, 7, 35):
        x, y = grid_layout(36, 128).corner(seed % 6, seed // 6)
        shown = np.asarray(grid)[y : y + 128, x : x + 128][2::4, 2::4]
        assert near(shown, expected(seed))
        assert near(pixels(folder / f"images/seed{seed:04d}.png"), expected(seed))


@pytest.mark.parametrize("word", ["seeds=1,5,7-9", "seeds=[1,5,7-9]", "seeds='1,5,7-9'", "seeds=1,5,5,7-9,1"])
def test_lists_of_seeds_need_no_quotes(shell: Shell, word: str) -> None:
    status, text = shell(word, "output=out", "grid=false", "latents=false")
    assert status == 0, text
    names = sorted(path.name for path in Path("out/images").iterdir())
    assert names == [f"seed000{seed}.png" for seed in (1, 5, 7, 8, 9)]


def test_pictures_say_how_they_were_made(shell: Shell) -> None:
    words = ["seeds=3-4", "output=out", "truncation=0.7", "cutoff=4", "noise=random"]
    assert shell(*words)[0] == 0
    file = Image.open("out/images/seed0004.png")
    made = {
        "seed": "4",
        "generator": "tiny",
        "fingerprint": tiny().fingerprint(),
        "truncation": "0.7",
        "noise": "random",
        "cutoff": "4",
    }
    assert file.info == made
    assert near(np.asarray(file), expected(4, truncation=0.7, cutoff=4, noise="random"))
    grid = Image.open("out/grid.png").info
    assert json.loads(grid["seeds"]) == [3, 4]
    assert grid["fingerprint"] == made["fingerprint"]
    assert not list(Path("out").rglob("*.tmp"))


@pytest.mark.parametrize("noise", ["const", "random", "none"])
def test_latents_give_the_pictures_again(shell: Shell, models: Path, noise: str) -> None:
    assert shell("seeds=2", "output=out", "truncation=0.5", f"noise={noise}", "grid=false")[0] == 0
    latent = load_latent("out/latents/seed0002.safetensors")
    assert (latent.name, latent.settings["truncation"]) == ("seed 2", 0.5)
    assert latent.generator == str(models / "tiny")
    image = latent.render(tiny())  # which refuses latents of other generators
    assert near(np.asarray(to_picture(image[0])), pixels("out/images/seed0002.png"))


def test_classes_make_the_rows_of_a_grid(shell: Shell) -> None:
    status, text = shell("generator=classes", "seeds=0-3", "label=2,0", "output=out", "latents=false")
    assert status == 0
    assert "grid.png, 4 x 2" in text
    names = sorted(path.name for path in Path("out/images").iterdir())
    assert names == [f"seed000{seed}_class{label}.png" for seed in range(4) for label in (0, 2)]
    one, other = (pixels(f"out/images/seed0001_class{label}.png") for label in (0, 2))
    assert (one != other).any()
    assert Image.open("out/images/seed0001_class2.png").info["label"] == "2"
    assert shell("generator=classes", "seeds=1", "label=2", "output=one")[0] == 0
    assert near(pixels("one/images/seed0001.png"), other)
    label = load_latent("one/latents/seed0001.safetensors").label
    assert label is not None
    assert label.tolist() == [0, 0, 1]


def test_grey_pictures_are_grey(shell: Shell) -> None:
    assert shell("generator=grey", "seeds=0", "output=out")[0] == 0
    assert Image.open("out/images/seed0000.png").mode == "L"


def test_what_is_not_wanted_is_not_written(shell: Shell) -> None:
    assert shell("seeds=0-1", "output=out", "files=false", "latents=false")[0] == 0
    assert [path.name for path in Path("out").iterdir()] == ["grid.png"]


# Matrices.


def test_a_mixing_matrix_has_its_sources_on_the_margins(shell: Shell) -> None:
    words = ["mixing.rows=1,2,3", "mixing.columns=3,9", "mixing.layers=0-3", "output=out"]
    status, text = shell(*words)
    assert status == 0, text
    assert "  mixing.png, 3 x 2, rows 0-3 of w_plus from the seeds at the top\n" in text
    assert [path.name for path in Path("out").iterdir()] == ["mixing.png"]  # no samples besides
    sheet, layout = Image.open("out/mixing.png"), Layout(3, 4, 128, margin=True)
    assert sheet.size == layout.size
    assert json.loads(sheet.info["mixed_rows"]) == [0, 1, 2, 3]

    def shown(column: int, row: int) -> np.ndarray:
        x, y = layout.corner(column, row)
        return np.asarray(sheet)[y : y + 128, x : x + 128][2::4, 2::4]

    for column, seed in enumerate((3, 9), start=1):
        assert near(shown(column, 0), expected(seed))
    for row, seed in enumerate((1, 2, 3), start=1):
        assert near(shown(0, row), expected(seed))
    assert near(shown(1, 3), expected(3))  # seed 3 with styles of seed 3
    assert not near(shown(1, 1), expected(1))
    assert not near(shown(1, 1), expected(3))
    assert (shown(0, 0) == shown(0, 0)[0, 0]).all()  # paper


# Animations.


@pytest.mark.parametrize("format", ["webp", "gif", "mp4"])
def test_an_animation_leads_from_seed_to_seed(shell: Shell, format: str) -> None:
    words = ["interpolate=0-2", "video.frames=5", "video.fps=20", f"video.format={format}", "output=out"]
    if format == "mp4":
        av = pytest.importorskip("av")
    status, text = shell(*words)
    assert status == 0, text
    assert f"  interpolation.{format}, 15 images, 0.8 s" in text
    path = Path(f"out/interpolation.{format}")
    assert [file.name for file in Path("out").iterdir()] == [path.name]
    if format == "mp4":
        with av.open(str(path)) as container:
            assert json.loads(container.metadata["comment"])["seeds"] == "[0, 1, 2]"
            assert container.streams.video[0].average_rate == 20
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    else:
        file: Any = Image.open(path)
        comment = file.getexif()[0x010E] if format == "webp" else file.info["comment"].decode()
        assert json.loads(comment)["fingerprint"] == tiny().fingerprint()
        assert file.info["loop"] == 0
        frames, durations = [], []
        for number in range(file.n_frames):
            file.seek(number)
            file.load()
            durations.append(file.info["duration"])
            frames.append(np.asarray(file.convert("RGB")))
        assert sum(durations) == 750
    assert len(frames) == 15
    for seed in range(3):
        shown = frames[5 * seed].reshape(32, 4, 32, 4, 3).mean((1, 3))
        # Colours lose by a palette, or by half their resolution.
        distances = [np.abs(shown - expected(other)).mean() for other in range(3)]
        assert distances[seed] < 12
        assert distances.index(min(distances)) == seed


def test_an_open_way_is_played_once(shell: Shell) -> None:
    words = ["interpolate=4,1", "video.frames=3", "video.loop=false", "video.space=z", "output=out"]
    assert shell(*words)[0] == 0
    file: Any = Image.open("out/interpolation.webp")
    assert (file.n_frames, file.info["loop"]) == (4, 1)


def test_everything_at_once(shell: Shell) -> None:
    matrix, way = ["mixing.rows=0", "mixing.columns=1"], ["interpolate=0-1", "video.frames=2"]
    status, text = shell("seeds=0", *matrix, *way, "output=out")
    assert status == 0, text
    assert {path.name for path in Path("out").iterdir()} == {
        "grid.png", "images", "latents", "mixing.png", "interpolation.webp"
    }  # fmt: skip


# What goes wrong.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seeds=abc"], "seeds=abc: give seeds from 0 up and ranges of them: 0-35, or 1,5,7-9"),
        (["truncation=abc"], "truncation=abc: give a number"),
        (["cutoff=9"], "cutoff=9: this generator has 8 rows of w_plus"),
        (["cutoff=x"], "cutoff=x: give a whole number or null"),
        (["noise=loud"], "noise=loud: choose one of const, random, none"),
        (["label=0"], "label=0: this generator is unconditional; leave it out"),
        (["generator=classes", "label=0,3"], "label=3: this generator has classes from 0 to 2"),
        (["tile_px=2"], "tile_px=2: give at least 8"),
        (["device=gpu7"], "device=gpu7: choose one of auto, cpu, cuda, cuda:1, mps"),
        (["device=xpu"], "device=xpu: torch finds none on this machine"),
        (["mixing=0-3"], "mixing=0-3: "),
        (["interpolate=0-1", "video.format=mp4", "tile_px=33"], "tile_px=33: MP4 takes even sides alone"),
        (["seeds=0", "mixing.layers=0-3,6"], "mixing.layers=0-3,6: needs mixing.rows and mixing.columns\n"),
        (["interpolate=0-1", "mixing.layers=no"], "mixing.layers=no: needs mixing.rows and mixing.columns\n"),
        (["seeds=0", "video.frames=5", "mixing.layers=coarse"], "video.frames=5: needs interpolate\n"),
        (["mixing.rows=0", "mixing.columns=1", "video.loop=false"], "video.loop=false: needs interpolate\n"),
        (["video.fps=30"], "video.fps=30: needs interpolate\n"),
        (["video.format=avi"], "video.format=avi: needs interpolate\n"),
        (["video.space=z"], "video.space=z: needs interpolate\n"),
        (["output=x.png"], "output=x.png: names a file; give a folder"),
        (["sedes=3"], "sedes: no such key. Did you mean seeds?"),
        (["video.fsp=3"], "video.fsp: no such key. Did you mean video.fps?"),
    ],
)
def test_a_slip_is_told_in_one_line(shell: Shell, words: list[str], says: str) -> None:
    status, text = shell(*words)
    assert status == 1
    assert text.startswith(f"i2i-sample: {says}"), text
    assert text.count("\n") <= 2, text
    assert not list(Path().iterdir())  # nothing is left behind


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seeds": "-1"}, "seeds=-1: give seeds from 0 up"),
        ({"seeds": "0-99999"}, "grid: 317 x 316 pictures of 128 px on one sheet are"),
        ({"label": "cat"}, "label=cat: give classes from 0 up"),
        ({"label": "0-1", "interpolate": "0-1"}, "label=0-1: matrices and interpolations are of one class"),
        ({"mixing.rows": "0-3"}, "mixing.rows=0-3: a matrix needs mixing.columns as well"),
        ({"mixing.columns": 2}, "mixing.columns=2: a matrix needs mixing.rows as well"),
        (
            {"mixing.rows": 0, "mixing.columns": 1, "mixing.layers": "fine"},
            "mixing.layers=fine: fine styles begin at 64 px",
        ),
        ({"mixing.rows": "0-199", "mixing.columns": "0-999"}, "mixing: 1001 x 201 pictures of 128 px on one"),
        ({"interpolate": 3}, "interpolate=3: a way needs two seeds at least, such as 0-5"),
        ({"interpolate": "0-1", "video.format": "avi"}, "video.format=avi: choose one of webp, gif, mp4"),
        ({"interpolate": "0-1", "video.space": "x"}, "video.space=x: choose one of w, z"),
        ({"interpolate": "0-1", "video.frames": 0}, "video.frames=0: give at least 1"),
        ({"interpolate": "0-1", "video.fps": 0.0}, "video.fps=0: give 0.1 to 120"),
        ({"interpolate": "0-1", "video.format": "gif", "video.fps": 60}, "video.fps=60: give 0.1 to 50"),
        ({"interpolate": "0-999", "video.frames": 999}, "video.format=webp: 999000 images of 128 px are"),
        ({"grid": False, "files": False, "latents": False}, "grid=false files=false latents=false: nothing"),
    ],
)
def test_what_nobody_can_draw(given: dict[str, Any], says: str, conf: Path) -> None:
    options = yaml.safe_load((conf / "sample.yaml").read_text(encoding="utf-8"))
    for key, value in given.items():
        node, (*parts, last) = options, key.split(".")
        for part in parts:
            node = node[part]
        node[last] = value
    sampler = Sampler(tiny())
    with pytest.raises(UserError) as slip:
        Request.read(options).check(sampler, Gallery(sampler, Path("out"), "tiny"))
    assert str(slip.value).startswith(says)
    assert "\n" not in str(slip.value)


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words",
    [shlex.split(line, comments=True)[1:] for line in re.findall(r"^i2i-sample\b.*$", README, re.MULTILINE)],
    ids=" ".join,
)
def test_what_the_readme_draws_can_be_drawn(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """At the size of ``ffhq``, the largest that it names; nothing is drawn."""
    narrow = MobileStyleGAN((4,) * 8, z_dim=8, w_dim=8)
    assert narrow.size_px == 1024
    monkeypatch.setattr(generators, "open_generator", lambda source: (narrow, None))
    drawn: list[int] = []

    def draw(request: Request, gallery: Gallery) -> list[str]:
        drawn.append(request.num_images)
        return []

    monkeypatch.setattr(Request, "draw", draw)
    assert APP.main(["device=cpu", "output=out", *words]) == 0
    assert drawn[0] > 20


def test_a_generator_that_is_not_there(shell: Shell) -> None:
    assert shell("generator=nofile.pt")[1].startswith("i2i-sample: generator=nofile.pt: no such file; ")
    Path("my photo,1.jpg").write_bytes(b"\xff\xd8\xff" * 99)
    status, text = shell("generator=my photo,1.jpg")
    assert status == 1
    assert text.startswith("i2i-sample: generator=my photo,1.jpg: ")
    assert text.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["my photo,1.jpg"]


@pytest.mark.slow
@pytest.mark.skipif(not EMBEDDED.is_file(), reason="needs the embedded generator")
def test_without_an_argument_it_is_quick() -> None:
    began = time.perf_counter()
    command = [sys.executable, "-m", "i2i_lightning.commands.sample"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 20
    (folder,) = Path("outputs/sample").iterdir()
    assert done.stdout.startswith(f"{folder}: embedded, 32 px, fingerprint ")
    assert Image.open(folder / "grid.png").size == grid_layout(36, 128).size


def test_mp4_without_its_package(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("i2i_lightning.sampling.videos.find_spec", lambda name: None)
    status, text = shell("interpolate=0-1", "video.format=mp4")
    assert status == 1
    assert "needs the package av: pip install 'i2i_lightning[video]'" in text
    assert text.count("\n") == 1


def test_outputs_are_not_replaced_unasked(shell: Shell) -> None:
    assert shell("seeds=0", "output=out")[0] == 0
    status, text = shell("seeds=1", "output=out")
    assert status == 1
    assert text == (
        "i2i-sample: output=out: is there already and not empty; give another folder, or overwrite=true\n"
    )
    assert not Path("out/images/seed0001.png").exists()
    assert shell("seeds=1", "output=out", "overwrite=true")[0] == 0
    assert Path("out/images/seed0001.png").exists()
    Path("empty").mkdir()
    assert shell("seeds=1", "output=empty")[0] == 0
    Path("file").write_text("x")
    assert "output=file: names a file; give a folder" in shell("output=file")[1]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no")],
)
def test_out_of_memory(shell: Shell, monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    def full(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(Sampler, "images", full)
    status, text = shell("batch_size=7")
    assert status == 1
    assert text == "i2i-sample: device=cpu: out of memory; lower batch_size (now 7)\n"
    assert not Path("outputs").exists()
    Path("outputs/mine").mkdir(parents=True)
    Path("empty").mkdir()
    assert [shell(*words)[0] for words in ([], ["output=empty"], ["output=new"])] == [1, 1, 1]
    assert sorted(map(str, Path().rglob("*"))) == ["empty", "outputs", "outputs/mine"]


def test_ctrl_c_says_what_is_there(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, calls = Sampler.images, []

    def interrupted(self: Sampler, points: sampling.Points) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return drawn(self, points)

    monkeypatch.setattr(Sampler, "images", interrupted)
    status, text = shell("seeds=0-9", "batch_size=2", "output=out")
    assert status == 130
    assert "i2i-sample: stopped. 4 of 10 images were drawn; finished files are in out\n" in text
    assert len(list(Path("out/images").iterdir())) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_disk_that_takes_nothing(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    status, text = shell("seeds=0", "output=out")
    assert status == 1
    assert text == "i2i-sample: out/images/seed0000.png: cannot be written (No space left on device)\n"


# Words.


@pytest.mark.parametrize("name", ["a,b.pt", "a b", "x=y.pkl", "it's.pt", "~/x.pt", "stylegan2", "[1]"])
def test_names_of_generators_arrive_as_typed(name: str) -> None:
    """``stylegan2`` is also an option of the config group of this name."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = arguments.parse([f"generator={name}"], ["generator"])
    prepare(parsed)
    override = OverridesParser.create().parse_override(parsed.overrides[0])
    assert override.key_or_group == "generator.path"
    assert str(override.value()) == str(Path(name).expanduser())


def test_a_sweep_over_generators_and_seeds(shell: Shell) -> None:
    status, text = shell(
        "--multirun", "generator=tiny,grey", "seeds=0,1-2", "grid=false", "latents=false", "hydra.sweep.dir=."
    )
    assert status == 0, text
    assert text.count(": tiny, 32 px") == text.count(": grey, 32 px") == 2
    counts = sorted(len(list(folder.iterdir())) for folder in Path("outputs/sample").glob("*/images"))
    assert counts == [1, 1, 2, 2]


def test_help(capsys: pytest.CaptureFixture[str], conf: Path) -> None:
    assert APP.main(["--help"]) == 0
    page = capsys.readouterr().out
    for needed in ("usage: i2i-sample", "generator=embedded", "mixing.layers=coarse", "video.fps=24"):
        assert needed in page
    assert max(map(len, page.splitlines())) <= 110


def test_sides_of_pictures() -> None:
    assert [tile_side(size, None) for size in (16, 32, 64, 100, 128, 256, 1024)] == [
        128, 128, 128, 200, 128, 256, 256
    ]  # fmt: skip
    assert tile_side(1024, 512) == 512
    for count in (1, 2, 3, 5, 36, 37, 1000):
        layout = grid_layout(count, 128)
        assert layout.columns * layout.rows >= count > layout.columns * (layout.rows - 1)
        assert layout.columns == math.ceil(math.sqrt(count))
