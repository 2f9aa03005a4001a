"""i2i-invert from the shell's words to latents, pictures and a table, and everything that goes wrong."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from i2i_lightning.checkpoints import load_style_generator, save_style_generator
from i2i_lightning.checkpoints.io import read_checkpoint
from i2i_lightning.checkpoints.latents import Latent, load_latent, save_latent
from i2i_lightning.commands.invert import APP
from i2i_lightning.commands.train import APP as TRAIN
from i2i_lightning.methods.inversion import Embedding
from i2i_lightning.methods.inversion.method import Inversion
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.sampling.pictures import to_picture
from i2i_lightning.sampling.sheets import Layout, tile, tile_side

SIDE = 16
WORDS = [
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "loss.perceptual.name=substitute",
    "method.stages.w_plus.steps=3",
    "method.stages.noise.steps=2",
    "method.start.candidates=2",
    "data.batch_size=2",
]
STEPS = 5
NO_IMAGE = "i2i-invert has no image for this term; i2i-edit operation"
BEHIND = ["+stage@method.stages.more=default", "method.stages.more.moves=[noise]"]
Shell = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    monkeypatch.setenv("I2I_WEIGHTS", str(tmp_path / "no weights"))
    monkeypatch.delenv("I2I_DEBUG", raising=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = StyleGAN2Generator(SIDE, 3, 8, 8, mapping_layers=1, channel_base=128, channel_max=8)
    for name, value in network.named_parameters():
        if name.endswith("noise_strength"):
            value.data.fill_(0.3)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_style_generator(path, network)
    return path


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tiny: Path) -> Shell:
    """Run the command, on ``tiny`` where nothing else is said; return its exit status and what it printed."""

    def run(*words: str) -> tuple[int, str]:
        named = any(word.startswith(("generator=", "resume=")) for word in words)
        resumed = any(word.startswith("resume=") for word in words)
        status = APP.main([*([] if resumed else WORDS), *([] if named else [f"generator={tiny}"]), *words])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def photos(folder: str, count: int = 5) -> Path:
    for index in range(count):
        save(Path(folder) / f"{index}.png", (SIDE, SIDE, 3), index)
    return Path(folder)


def save(path: Path, shape: tuple[int, ...], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def levels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def runs() -> list[Path]:
    return sorted(Path("outputs/invert").iterdir())


def found(folder: Path, count: int = 5) -> list[Latent]:
    return [load_latent(folder / "latents" / f"{index}.safetensors") for index in range(count)]


def assert_equal(one: Latent, other: Latent) -> None:
    assert torch.equal(one.w_plus, other.w_plus)
    assert one.noise is not None
    assert other.noise is not None
    assert all(torch.equal(a, b) for a, b in zip(one.noise, other.noise, strict=True))
    # The peak of a process is that of the tests before as well.
    assert {**one.metrics, "memory_mb": 0} == {**other.metrics, "memory_mb": 0}


# Results.


@pytest.mark.filterwarnings("error:You passed in a `val_dataloader`")
def test_every_image_has_a_latent_that_renders_its_picture(shell: Shell, tiny: Path) -> None:
    status, text = shell(f"images={photos('in')}")
    assert status == 0, text
    (folder,) = runs()
    assert f"Gallery: {folder / 'index.html'}" in text
    assert "Morph" not in text, "it closes the demonstration alone"
    generator = load_style_generator(tiny)
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [str(index) for index in range(5)]
    for index, (latent, row) in enumerate(zip(found(folder), rows, strict=True)):
        assert latent.fingerprint == generator.fingerprint()
        assert latent.generator == str(tiny)
        picture = levels(folder / "pictures" / f"{index}.png")
        assert np.array_equal(np.asarray(to_picture(latent.render(generator)[0])), picture)
        target = levels(folder / "targets" / f"{index}.png")
        assert np.array_equal(target, levels(Path("in") / f"{index}.png"))
        mean_square = np.mean((picture.astype(float) - target) ** 2)
        assert float(row["psnr"]) == pytest.approx(10 * math.log10(255**2 / mean_square), abs=1e-3)
        assert (folder / "strips" / f"{index}.png").is_file()
        assert any("substitute" in note for note in latent.settings["notes"])
    mean = sum(float(row["psnr"]) for row in rows) / 5
    table = (folder / "results.md").read_text()
    assert f"| mean of 5 | {mean:.4g} |" in table
    assert all(50 < float(row["memory_mb"]) < 20_000 for row in rows)
    assert "memory, MB" in table
    assert "\nMemory: the process's peak resident size" in table
    assert not (folder / "videos").exists()


def test_the_demonstration_closes_with_a_morph_and_writes_videos(shell: Shell) -> None:
    status, text = shell("callbacks.results.video=true", "callbacks.results.frames=3", "data.num_faces=2")
    assert status == 0, text
    (folder,) = runs()
    assert text.rstrip().endswith(f"Morph: {folder / 'morph.png'}")
    strip = Image.open(folder / "morph.png")
    assert strip.width > 3 * strip.height
    for name in ("test_00000", "test_00001"):
        with Image.open(folder / "videos" / f"{name}.webp") as video:
            assert video.n_frames >= 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("tuned", [False, True])
def test_the_ends_of_the_morph_are_the_pictures_found(shell: Shell, tiny: Path, tuned: bool) -> None:
    tune = [f"method.stages.noise.{word}" for word in ("moves=[generator]", "keep=last", "rate=0.1")]
    status, text = shell("data.num_faces=9", "data.limit=3", *(tune if tuned else []))
    assert status == 0, text
    (folder,) = runs()
    assert len(list((folder / "latents").iterdir())) == 3
    generator = load_style_generator(tiny)
    layout = Layout(8, 2, tile_side(SIDE, None))
    with Image.open(folder / "morph.png") as strip:
        shown = {
            (column, row): strip.crop((x, y, x + layout.tile_px, y + layout.tile_px))
            for column in (0, 7)
            for row in (0, 1)
            for x, y in [layout.corner(column, row)]
        }
    for name, column in (("test_00000", 0), ("test_00001", 7)):
        latent = load_latent(folder / "latents" / f"{name}.safetensors")
        assert (latent.tuned is not None) == tuned
        image = latent.render(generator)
        plain = Latent(latent.w_plus, latent.fingerprint).render(generator)
        for row, drawn in enumerate((image, plain)):
            expected = tile(to_picture(drawn[0]), layout.tile_px)
            assert np.array_equal(np.asarray(shown[column, row]), np.asarray(expected))
        assert (image - plain).abs().max() > 0.05, "noise and weights make a difference"


def test_neither_the_chunk_nor_the_others_matter(shell: Shell) -> None:
    photos("in")
    assert shell("images=in")[0] == 0
    assert shell("images=in/3.png")[0] == 0
    together, alone = runs()
    one, other = (load_latent(folder / "latents" / "3.safetensors") for folder in (together, alone))
    torch.testing.assert_close(one.w_plus, other.w_plus, atol=1e-4, rtol=1e-4)


@pytest.fixture
def power_cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], list[int]]]:
    """Let the process die in a step, or not at all; return the list of chunks that steps were of."""
    step = Inversion.step

    def arm(after: int | None) -> list[int]:
        seen: list[int] = []

        def counted(self: Inversion, batch: Any) -> Iterator[None]:
            if after is not None and len(seen) == after:
                raise RuntimeError("power cut")
            seen.append(self.current_epoch)
            return step(self, batch)

        monkeypatch.setattr(Inversion, "step", counted)
        return seen

    yield arm
    monkeypatch.setattr(Inversion, "step", step)


def test_a_chunk_that_was_stopped_goes_on_as_if_it_had_not_been(
    shell: Shell, power_cut: Callable[[int | None], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock(steps: list[int]) -> None:
        """Let a step take a second; a process has a clock of its own."""
        tells = SimpleNamespace(monotonic=lambda: float(len(steps)))
        monkeypatch.setattr("i2i_lightning.callbacks.inversions.time", tells)

    photos("in")
    words = ["images=in", "callbacks.checkpoints.every_n_batches=2", "callbacks.results.video=true"]
    clock(power_cut(None))
    assert shell(*words)[0] == 0
    clock(power_cut(STEPS + 4))
    with pytest.raises(RuntimeError, match="power cut"):
        shell(*words)
    whole, stopped = runs()
    first = stopped / "latents" / "0.safetensors"
    before = first.read_bytes(), first.stat().st_ino
    assert not (stopped / "latents" / "2.safetensors").exists()
    held = read_checkpoint(stopped / "checkpoints" / "last.ckpt")["inversion_results"]
    assert [rank["chunk"] for rank in held] == [1]
    assert {picture.dtype for rank in held for picture in rank["seen"]} == {torch.uint8}
    seen = power_cut(None)
    clock(seen)
    status, text = shell(f"resume={stopped}")
    assert status == 0, text
    assert seen == [1, *[2] * STEPS], "chunk 1 goes on after its fourth batch, and chunk 0 rests"
    assert (first.read_bytes(), first.stat().st_ino) == before
    for one, other in zip(found(whole), found(stopped), strict=True):
        assert_equal(one, other)
    assert [latent.metrics["seconds"] for latent in found(stopped)] == [STEPS / 2] * 4 + [STEPS]
    for shown in ("strips/*.png", "videos/*.webp"):
        files = [[path.read_bytes() for path in sorted(run.glob(shown))] for run in (whole, stopped)]
        assert len(files[0]) == 5
        assert files[0] == files[1]
    assert read_checkpoint(stopped / "checkpoints" / "last.ckpt")["inversion_results"][0]["seen"] == []
    assert runs() == [whole, stopped]


def names_in(folder: Path) -> list[str]:
    with (folder / "results.csv").open(newline="") as file:
        return [row["image"] for row in csv.DictReader(file)]


def test_a_run_goes_on_with_more_images_and_others_at_once(shell: Shell) -> None:
    photos("in", 4)
    assert shell("images=in", "data.limit=2", "data.batch_size=1")[0] == 0
    (folder,) = runs()
    first = folder / "latents" / "0.safetensors"
    before = first.stat().st_ino
    status, text = shell(f"resume={folder}", "data.limit=null", "data.batch_size=2")
    assert status == 0, text
    assert names_in(folder) == ["0", "1", "2", "3"]
    save(Path("in/00.png"), (SIDE, SIDE, 3), 9)
    assert shell(f"resume={folder}", "data.batch_size=3")[0] == 0
    assert names_in(folder) == ["0", "00", "1", "2", "3"]
    Path("in/3.png").rename("in/9.png")
    assert shell(f"resume={folder}")[0] == 0
    assert names_in(folder) == ["0", "00", "1", "2", "9", "3"], "all that was found stays in the table"
    assert first.stat().st_ino == before, "what is finished is left alone"
    shutil.rmtree(folder / "latents")
    (folder / "finished.json").write_text(json.dumps({"epochs": 300}))  # more than trainer.max_epochs
    for words in (
        [f"resume={folder}"],
        ["images=in", f"hydra.run.dir={folder}", "resume=auto", "trainer=cpu"],
    ):
        status, text = shell(*words)
        assert status == 0, text
        assert "Every image has been searched for already; more images continue it: images=..." in text
        assert "epoch" not in text
    status, text = shell(f"resume={folder}", "preset=fast")
    assert status == 1
    assert text.endswith("Single values may change: resume=... data.limit=20\n")
    assert not (folder / "latents").exists(), "there is nothing left to search for"


@pytest.mark.parametrize("size", [1, 3])
def test_a_half_done_chunk_begins_anew_where_it_is_shared_out_otherwise(
    shell: Shell, power_cut: Callable[[int | None], list[int]], size: int
) -> None:
    photos("in")
    words = ["images=in", "callbacks.checkpoints.every_n_batches=2", "callbacks.results.video=true"]
    power_cut(STEPS + 4)
    with pytest.raises(RuntimeError, match="power cut"):
        shell(*words)
    (folder,) = runs()
    seen = power_cut(STEPS - 1)
    with pytest.raises(RuntimeError, match="power cut"):
        shell(f"resume={folder}", f"data.batch_size={size}")
    assert seen == [1] * 4, "the chunk of three or one began anew"
    seen = power_cut(None)
    status, text = shell(f"resume={folder}", f"data.batch_size={size}")
    assert status == 0, text
    assert seen == [1, *([2] * STEPS + [3] * STEPS if size == 1 else [])], "and goes on where it stood"
    assert names_in(folder) == ["0", "1", "2", "3", "4"]
    power_cut(None)
    assert shell(*words, "hydra.run.dir=whole")[0] == 0
    for one, other in zip(found(Path("whole")), found(folder), strict=True):
        torch.testing.assert_close(one.w_plus, other.w_plus, atol=1e-4, rtol=1e-4)


def test_a_mask_says_where_an_image_counts(shell: Shell) -> None:
    photos("in", 2)
    for index in range(2):
        white = np.zeros((SIDE, SIDE), np.uint8)
        white[:, : SIDE // 2] = 255
        Path("masks").mkdir(exist_ok=True)
        Image.fromarray(white).save(f"masks/{index}.png")
    other = levels(Path("in/0.png")).copy()
    other[:, SIDE // 2 :] = 0
    Path("other").mkdir()
    Image.fromarray(other).save("other/0.png")
    save(Path("other/1.png"), (SIDE, SIDE, 3), 1)
    for folder in ("in", "other"):
        words = (
            f"images={folder}",
            "data.masks=masks",
            "loss.lambda_perceptual=0",
            f"hydra.run.dir={folder}_run",
        )
        assert shell(*words)[0] == 0
    one, two = (found(Path(f"{folder}_run"), 2) for folder in ("in", "other"))
    assert torch.equal(one[0].w_plus, two[0].w_plus), "what the mask leaves out does not matter"
    assert "Figures are of whole pictures" in Path("in_run/results.md").read_text()
    assert shell("images=in", "loss.lambda_perceptual=0", "hydra.run.dir=whole")[0] == 0
    assert not torch.equal(found(Path("whole"), 1)[0].w_plus, one[0].w_plus)


def test_a_conditional_generator_takes_a_label(shell: Shell, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = StyleGAN2Generator(SIDE, 3, 8, 8, 3, mapping_layers=1, channel_base=128, channel_max=8)
    save_style_generator(tmp_path / "classes.safetensors", network)
    photos("in", 3)
    words = ("images=in", "generator=classes.safetensors", "method.stages.noise=null")
    status, text = shell(*words)
    assert status == 1
    assert text == "i2i-invert: data.label: this generator has 3 classes; give data.label=0 to 2\n"
    for label in (0, 2):
        status, text = shell(*words, f"data.label={label}", f"hydra.run.dir=run{label}")
        assert status == 0, text
        for latent in found(Path(f"run{label}"), 3):
            assert latent.label is not None
            assert latent.label.tolist() == [float(index == label) for index in range(3)]
    one, two = (found(Path(f"run{label}"), 3)[0].w_plus for label in (0, 2))
    assert not torch.equal(one, two)


def test_a_search_begins_with_the_latents_of_another(shell: Shell, tmp_path: Path, tiny: Path) -> None:
    photos("in", 3)
    assert shell("images=in", "hydra.run.dir=first")[0] == 0
    still = ["method.stages.noise=null", "method.stages.w_plus.rate=1e-12"]
    begin = ["method.start.kind=given", "data.start=first/latents"]
    status, text = shell("images=in", *begin, *still, "hydra.run.dir=second")
    assert status == 0, text
    for one, two in zip(found(Path("first"), 3), found(Path("second"), 3), strict=True):
        torch.testing.assert_close(one.w_plus, two.w_plus, rtol=0, atol=1e-6)
        assert one.noise is not None
        assert two.noise is not None
        assert all(torch.equal(a, b) for a, b in zip(one.noise, two.noise, strict=True))
        assert two.metrics["psnr"] == pytest.approx(one.metrics["psnr"], abs=1e-3)
    # A latent without maps of its own begins with the generator's.
    path = Path("first/latents/1.safetensors")
    bare = load_latent(path)
    save_latent(path, Latent(bare.w_plus, bare.fingerprint, "1"))
    assert shell("images=in", *begin, *still, "hydra.run.dir=third")[0] == 0
    maps = found(Path("third"), 3)[1].noise
    assert maps is not None
    stored = load_style_generator(tiny).noise_maps()
    assert all(torch.equal(a, b) for a, b in zip(maps, stored, strict=True))
    torch.manual_seed(1)
    other = StyleGAN2Generator(SIDE, 3, 8, 8, mapping_layers=1, channel_base=128, channel_max=8)
    save_style_generator(tmp_path / "other.safetensors", other)
    for words, message in (
        (begin[:1], "method.start.kind=given: data.start is missing; give a folder of latent files"),
        (begin[1:], "data.start with method.start.kind=best: add method.start.kind=given"),
        ([*begin, "method.stages.w_plus.moves=[w]"], "first/latents/0.safetensors: the rows of the latent"),
        (
            [*begin, "method.stages.w_plus.moves=[z]"],
            "first/latents/0.safetensors: the latent to begin with has",
        ),
        ([*begin, "generator=other.safetensors"], "latent first/latents/0.safetensors: belongs to another"),
    ):
        status, text = shell("images=in", *words, "hydra.run.dir=refused")
        assert status == 1
        assert text.startswith(f"i2i-invert: {message}"), text
        assert len(text.splitlines()) <= 2, text
    tuned = {"synthesis.b16.torgb.bias": torch.zeros(3)}
    save_latent(path, Latent(bare.w_plus, bare.fingerprint, "1", tuned=tuned))
    status, text = shell("images=in", *begin)
    assert (status, text.count("\n")) == (1, 1)
    assert "first/latents/1.safetensors: has weights that were tuned for it" in text
    path.unlink()
    status, text = shell("images=in", *begin)
    assert status == 1
    assert text.startswith("i2i-invert: data.start=first/latents: no latent file of 1 (1.safetensors);"), text


def test_what_was_found_before_a_torn_picture_is_in_the_table(shell: Shell) -> None:
    photos("in")
    torn = Path("in/3.png").read_bytes()
    Path("in/3.png").write_bytes(torn[: len(torn) * 2 // 3])  # the header is whole
    status, text = shell("images=in")
    assert status == 1
    told = text[text.index("i2i-invert: ") :].strip().splitlines()
    assert "in/3.png" in told[0]
    assert "Traceback" not in text
    (folder,) = runs()
    assert names_in(folder) == ["0", "1"]
    for name in ("results.md", "results.png", "index.html"):
        assert (folder / name).is_file()
    table = (folder / "results.md").read_text()
    status, text = shell(f"resume={folder}", "method.seed=7")
    assert status == 1
    assert "PSNR" not in text, "nothing was found: a resume that is refused writes no table"
    assert (folder / "results.md").read_text() == table


NO_LATENT = "no latent, because the search ended in numbers that are not finite; begin anew with"
SPOILT = """
import sys
import torch
from i2i_lightning.commands.invert import APP
from i2i_lightning.methods.inversion.method import Inversion

embedding = Inversion.embedding

def spoilt(self):
    found = embedding(self)
    for index, name in enumerate(found.names):
        if name == "{lost}":
            found.w_plus[index] = torch.nan
    return found

Inversion.embedding = spoilt
if __name__ == "__main__":
    sys.exit(APP.main())
"""


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the searches for images of these names end in NaN."""
    embedding = Inversion.embedding

    def arm(*names: str) -> None:
        def spoilt(self: Inversion) -> Embedding:
            assert self.search.targets is not None
            for index, name in enumerate(self.search.targets.names):
                if name in names:
                    self.search.kept_latent[index] = torch.nan
            return embedding(self)

        monkeypatch.setattr(Inversion, "embedding", spoilt)

    return arm


def test_an_image_that_ends_in_nan_costs_no_other(
    shell: Shell,
    power_cut: Callable[[int | None], list[int]],
    lose: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    lose("0")
    photos("in")
    status, text = shell("images=in", "hydra.run.dir=run")
    assert status == 1
    assert text.splitlines()[-1].startswith(f"i2i-invert: 0: {NO_LATENT}")
    assert text.count("mean of 4") == 1
    power_cut(STEPS + 4)
    with pytest.raises(RuntimeError, match="power cut"):
        shell("images=in", "callbacks.checkpoints.every_n_batches=2", "hydra.run.dir=stopped")
    capsys.readouterr()
    seen = power_cut(None)
    status, text = shell("resume=stopped")
    assert status == 0, "it was lost before the run was stopped"
    assert text.count(f"\n0: {NO_LATENT}") == 1
    assert seen[0] == 1
    for folder in (Path("run"), Path("stopped")):
        assert names_in(folder) == ["1", "2", "3", "4"]
        assert f"<p>0: {NO_LATENT}" in (folder / "index.html").read_text()
        assert not list(folder.glob("*/0.*"))


def test_a_resume_fails_for_what_it_loses_itself_and_names_all(
    shell: Shell, lose: Callable[..., None]
) -> None:
    photos("in")
    lose("0")
    assert shell("images=in", "data.limit=2", "hydra.run.dir=run")[0] == 1
    for _ in range(2):  # the first of them writes no checkpoint
        status, text = shell("resume=run")
        assert status == 0, text
        assert f"\n0: {NO_LATENT}" in f"\n{text}"
        assert "Every image has been searched for already" in text
    status, text = shell("resume=run", "data.limit=3")
    assert status == 0, text
    assert text.count(f"0: {NO_LATENT}") == 1
    lose("3")
    status, text = shell("resume=run", "data.limit=5")
    assert status == 1
    assert f"\n0, 3: {NO_LATENT}" in text
    assert text.splitlines()[-1].startswith(f"i2i-invert: 3: {NO_LATENT}")
    assert names_in(Path("run")) == ["1", "2", "4"]
    status, text = shell("resume=run")
    assert status == 0
    assert f"0, 3: {NO_LATENT}" in text


def test_behind_an_image_that_ends_in_nan_the_next_begins_as_the_first(
    shell: Shell, power_cut: Callable[[int | None], list[int]], lose: Callable[..., None]
) -> None:
    photos("in", 3)
    words = ["data.batch_size=1", "method.start.kind=previous"]
    assert shell("images=in/1.png", *words, "hydra.run.dir=alone")[0] == 0
    lose("0")
    assert shell("images=in", *words, "hydra.run.dir=run")[0] == 1
    power_cut(STEPS)
    with pytest.raises(RuntimeError, match="power cut"):
        shell("images=in", *words, "hydra.run.dir=stopped")
    power_cut(None)
    status, text = shell("resume=stopped")
    assert status == 0, text
    alone = load_latent(Path("alone/latents/1.safetensors")).w_plus
    for folder in (Path("run"), Path("stopped")):
        assert names_in(folder) == ["1", "2"]
        assert torch.equal(load_latent(folder / "latents/1.safetensors").w_plus, alone)


# Slips.


def test_a_run_is_continued_by_the_command_that_began_it(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    photos("in", 1)
    assert shell("images=in", "hydra.run.dir=run")[0] == 0
    facts = json.loads(Path("run/environment.json").read_text())
    for words in (["resume=run"], ["hydra.run.dir=run", "resume=auto"]):
        assert TRAIN.main(words) == 1
        said = "resume: run is a run of i2i-invert; continue it with i2i-invert resume=run\n"
        assert capsys.readouterr().err == f"i2i-train: {said}"
    Path("run/environment.json").write_text(json.dumps({**facts, "command": "i2i-train seed=1"}))
    status, text = shell("resume=run")
    assert status == 1
    assert text == "i2i-invert: resume: run is a run of i2i-train; continue it with i2i-train resume=run\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images=wide.png"], "wide.png (20x16)"),
        (["images=grey.png"], "grey.png (save it as RGB, or data.convert=match to convert)"),
        (["images=some"], "torn.png"),
        (["images=empty"], "images=empty: no images"),
        (["images=nowhere.png"], "images=nowhere.png: no such file or folder"),
        (["images=[in/0.png,other/0.png]"], "two are called 0"),
        (["images=notes.txt"], "notes.txt"),
        (["preset=fats"], "fast"),
        (["generator=nowhere.pkl"], "i2i-invert: generator=nowhere.pkl: no such file"),
        (["images=[]"], "images=[]: names none; give a file, a folder"),
        (["images="], "images=: names none"),
        (["images=in", "trainer.limit_train_batches=3"], "trainer.limit_train_batches=3: would end a search"),
        (["images=in", "trainer.limit_train_batches=0.5"], "trainer.limit_train_batches=0.5: would end"),
        (
            ["images=in", "+trainer.max_steps=3"],
            "trainer.max_steps=3: would end a search before its last step",
        ),
        (
            ["images=in", "method.stages.w_plus.rows=[]"],
            "method.stages.w_plus.rows=[]: names no row, and nothing would change",
        ),
        (["images=in", "trainer.max_epochs=3"], "trainer.max_epochs: every chunk of images takes one epoch"),
        (["images=in", "data.size_px=64"], "data.size_px=64: the generator decides, 16; leave it out"),
        (["images=in", "data.channels=1"], "data.channels=1: the generator decides, 3; leave it out"),
        (["images=in", "loss.lambda_style=1"], f"loss.lambda_style=1: {NO_IMAGE}=local_style_transfer has"),
        (["images=in", "loss.lambda_mse_outside=1"], f"loss.lambda_mse_outside=1: {NO_IMAGE}=crossover has"),
        (
            ["images=in", "+method.stages.w_plus.weights.style=2"],
            f"method.stages.w_plus.weights.style=2: {NO_IMAGE}=local_style_transfer has",
        ),
        (["images=in", "method.stages.w_plus.rows=0-9"], "method.stages.w_plus.rows=0-9: 9 is too large"),
        (
            ["images=in", "method.stages.w_plus.rows=all"],
            "method.stages.w_plus.rows=all: give coarse, middle",
        ),
        (["images=in", "data.batch_size=0"], "data.batch_size=0"),
        (["images=in", "data.fit=corp"], "data.fit=corp"),
        (["images=in", "method.stages.w_plus.stpes=3"], "method.stages.w_plus.stpes"),
        (["images=in", "precision=fp16"], "fp16"),
        (
            ["images=in", "method.stages.noise.moves=[generator]", "method.stages.noise.keep=last", *BEHIND],
            "method.stages.more: comes behind noise",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_slips_are_told_shortly(shell: Shell, words: list[str], message: str) -> None:
    photos("in", 1)
    photos("other", 1)
    photos("some", 2)
    Path("some/torn.png").write_bytes(Path("some/0.png").read_bytes()[:20])
    Path("empty").mkdir()
    Path("notes.txt").write_text("no image")
    save(Path("wide.png"), (16, 20, 3))
    save(Path("grey.png"), (16, 16))
    status, text = shell(*words)
    assert status == 1, text
    assert message in text
    assert "Traceback" not in text
    told = text[text.index("i2i-invert: ") :].strip().splitlines()
    assert len(told) <= 3, told
    assert not Path("outputs").exists() or not list(Path("outputs").rglob("latents"))


@pytest.mark.parametrize(("rows", "moved"), [("0-1,4", [0, 1, 4]), ("coarse", [0, 1, 2]), ("[0,3]", [0, 3])])
def test_rows_are_named_as_edits_name_them(shell: Shell, rows: str, moved: list[int]) -> None:
    words = [f"method.stages.w_plus.rows={rows}", "method.stages.noise=null", "method.start.kind=mean"]
    status, text = shell(f"images={photos('in', 1)}", *words)
    assert status == 0, text
    (latent,) = found(runs()[0], 1)
    assert latent.settings["stages"]["w_plus"]["rows"] == moved
    still = [row for row in range(len(latent.w_plus)) if row not in moved]
    assert torch.equal(latent.w_plus[still], latent.w_plus[still[:1]].expand(len(still), -1))
    assert (latent.w_plus[moved] != latent.w_plus[still[0]]).any(1).all()


def test_what_the_slips_advise_helps(shell: Shell) -> None:
    save(Path("in/wide.png"), (16, 20, 3))
    save(Path("in/grey.png"), (16, 16))
    status, text = shell("images=in", "data.fit=crop", "data.convert=match")
    assert status == 0, text
    (folder,) = runs()
    assert np.array_equal(levels(folder / "targets/wide.png"), levels(Path("in/wide.png"))[:, 2:18])
    assert np.array_equal(levels(folder / "targets/grey.png")[..., 1], levels(Path("in/grey.png")))


def in_processes(*words: str) -> None:
    command = [sys.executable, "-m", "i2i_lightning.commands.invert", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.ddp
def test_a_run_goes_on_with_other_processes(shell: Shell, tiny: Path) -> None:
    photos("in")
    assert shell("images=in", "hydra.run.dir=whole")[0] == 0
    words = [*WORDS, f"generator={tiny}", "images=in", "trainer=ddp", "trainer.accelerator=cpu"]
    in_processes(*words, "trainer.devices=1", "data.limit=2", "data.batch_size=1", "hydra.run.dir=run")
    before = [path.stat().st_ino for path in sorted(Path("run/latents").iterdir())]
    in_processes("resume=run", "trainer.devices=2", "data.limit=null")
    assert names_in(Path("run")) == ["0", "1", "2", "3", "4"]
    assert [path.stat().st_ino for path in sorted(Path("run/latents").iterdir())][:2] == before
    for one, other in zip(found(Path("whole")), found(Path("run")), strict=True):
        torch.testing.assert_close(one.w_plus, other.w_plus, atol=1e-4, rtol=1e-4)


def test_a_run_of_before_begins_again_with_the_weights_that_it_had(shell: Shell) -> None:
    photos("in", 2)
    assert shell("images=in", "hydra.run.dir=run")[0] == 0
    for file in (Path("run/config.yaml"), Path("run/.hydra/config.yaml")):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            file.write_text(
                text.replace("lambda_mse_outside: 0.0", "lambda_mse_outside: 1.0"), encoding="utf-8"
            )
    for name in ("checkpoints", "latents", "pictures"):
        shutil.rmtree(Path("run", name))
    Path("run/finished.json").unlink()
    status, text = shell("resume=run")
    assert status == 0, text
    assert len(found(Path("run"), 2)) == 2


@pytest.mark.ddp
def test_a_half_done_chunk_begins_anew_with_other_processes(
    shell: Shell, tiny: Path, power_cut: Callable[[int | None], list[int]]
) -> None:
    photos("in")
    assert shell("images=in", "hydra.run.dir=whole")[0] == 0
    words = ["images=in", "callbacks.checkpoints.every_n_batches=2", "hydra.run.dir=run"]
    power_cut(STEPS + 4)
    with pytest.raises(RuntimeError, match="power cut"):
        shell(*words)
    first = Path("run/latents/0.safetensors")
    before = first.read_bytes(), first.stat().st_ino
    in_processes("resume=run", "trainer.strategy=ddp_find_unused_parameters_true", "trainer.devices=2")
    assert names_in(Path("run")) == ["0", "1", "2", "3", "4"]
    assert (first.read_bytes(), first.stat().st_ino) == before
    for one, other in zip(found(Path("whole")), found(Path("run")), strict=True):
        torch.testing.assert_close(one.w_plus, other.w_plus, atol=1e-4, rtol=1e-4)


@pytest.mark.ddp
def test_two_processes_do_not_mix_their_images(shell: Shell, tiny: Path) -> None:
    photos("in")
    assert shell("images=in")[0] == 0
    words = [*WORDS, f"generator={tiny}", "images=in", "trainer=ddp", "trainer.accelerator=cpu"]
    in_processes(*words, "trainer.devices=2")
    one, two = runs()
    for alone, shared in zip(found(one), found(two), strict=True):
        torch.testing.assert_close(alone.w_plus, shared.w_plus, atol=1e-4, rtol=1e-4)
    assert len((two / "results.csv").read_text().splitlines()) == 6


@pytest.mark.ddp
@pytest.mark.parametrize(("trainer", "lost"), [("ddp", "2"), ("ddp_spawn", "0")])
def test_an_image_that_ends_in_nan_kills_no_process(tiny: Path, trainer: str, lost: str) -> None:
    """The first process has images 0 and 1, the second 2 and 3."""
    photos("in", 4)
    Path("spoilt.py").write_text(SPOILT.format(lost=lost))
    words = [*WORDS, f"generator={tiny}", "images=in", f"trainer={trainer}", "trainer.accelerator=cpu"]
    command = [sys.executable, "spoilt.py", *words, "trainer.devices=2", "hydra.run.dir=run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count(NO_LATENT) == 1
    assert f"i2i-invert: {lost}: {NO_LATENT}" in done.stderr
    assert "died" not in done.stderr
    assert "Traceback" not in done.stderr
    assert names_in(Path("run")) == [name for name in "0123" if name != lost]
    assert f"<p>{lost}: {NO_LATENT}" in Path("run/index.html").read_text()
