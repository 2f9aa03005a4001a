"""The method under a trainer: the search, chunk by chunk; resumed equals uninterrupted; precisions; slips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor
from torch.utils.data import DataLoader

from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.checkpoints.io import read_checkpoint
from i2i_lightning.methods.inversion import Embedding, Stage, Start, Targets, embed
from i2i_lightning.methods.inversion.method import Inversion
from i2i_lightning.strategies.precision import bf16, fp16, fp32, fp64
from i2i_lightning.types import UserError
from tests.methods.inversions import generator, images, loss, method, names, preset
from tests.methods.runs import Log
from tests.methods.test_resume import KeepEvery, assert_same

STAGES = {
    "w_plus": Stage(["w_plus"], 4, rate=0.05, ramp_up=0.5, w_noise=0.05),
    "noise": Stage(["noise"], 3, rate=0.05, weights={"perceptual": 0}),
}
TUNED = {
    "joint": Stage(["w", "noise"], 2, normalise_noise=True),
    "tune": Stage(["generator"], 2, keep="last"),
}
STOPPING = {"w_plus": Stage(["w_plus"], 6, rate=0.05, stop_at={"mse": 1e9})}


class Chunk:
    """A data set that is the chunk of the present epoch, as often as it is asked for."""

    def __init__(self, batch: dict[str, Any], steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= self.steps:
            raise IndexError
        return self.batch


class Chunks(L.LightningDataModule):
    """``count`` images in chunks of ``size``; the trainer asks for another loader in every epoch."""

    def __init__(self, count: int, size: int, empty: bool = False) -> None:
        super().__init__()
        self.batch_size = size
        wanted, labels = images(count), names(count)
        self.chunks = [
            {"real": wanted[first : first + size], "name": labels[first : first + size]}
            for first in range(0, count, size)
        ]
        if empty:
            self.chunks.append({"real": wanted[:0], "name": []})

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        epoch = min(self.trainer.current_epoch, len(self.chunks) - 1)
        steps = self.trainer.lightning_module.steps_per_chunk(self.batch_size)
        chunk = Chunk(self.chunks[epoch], steps)
        return DataLoader(chunk, batch_size=None)  # type: ignore[arg-type]


class Collect(L.Callback):
    """Keep what was found for every chunk, and in which batch it was through."""

    def __init__(self) -> None:
        self.found: list[Embedding] = []
        self.after: list[int] = []
        self._chunk = -1

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.finished and self._chunk != trainer.current_epoch:
            self._chunk = trainer.current_epoch
            self.found.append(pl_module.embedding())
            self.after.append(batch_idx + 1)


def fit(
    inversion: Inversion,
    data: Chunks,
    precision: Precision | None = None,
    resume: Path | None = None,
    **options: Any,
) -> Collect:
    collect = Collect()
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "callbacks": []} | options
    callbacks = [collect, *settings.pop("callbacks")]
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=len(data.chunks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        plugins=[precision or fp32()],
        callbacks=callbacks,
        **settings,
    )
    trainer.fit(inversion, datamodule=data, ckpt_path=resume)
    return collect


@pytest.mark.parametrize("stages", [STAGES, TUNED, STOPPING], ids=["stages", "tuned", "stopping"])
def test_the_method_is_the_search(stages: dict[str, Stage]) -> None:
    inversion = method(stages, seed=5, start=Start("random"))
    before = {name: value.clone() for name, value in inversion.generator.state_dict().items()}
    found = fit(inversion, Chunks(3, 2)).found
    assert [one.names for one in found] == [["face 0", "face 1"], ["face 2"]]
    for one, first in zip(found, (0, 2), strict=True):
        wanted = Targets(images()[first : first + 2], names()[first : first + 2])
        plain = embed(generator(), wanted, stages, loss(), Start("random"), seed=5)
        for mine, theirs in zip(
            (one.w_plus, one.image, *(one.noise or ())),
            (plain.w_plus, plain.image, *(plain.noise or ())),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
        assert one.steps.tolist() == plain.steps.tolist()
    assert all(torch.equal(value, before[name]) for name, value in inversion.generator.state_dict().items())


def test_a_chunk_that_is_through_idles_to_its_end_and_so_does_an_empty_one() -> None:
    log = Log()
    inversion = method(STOPPING)
    collect = fit(inversion, Chunks(2, 1, empty=True), logger=log, log_every_n_steps=1)
    assert collect.after == [6, 6, 1]  # looked at every ten steps, else at the end
    assert inversion.batches_seen == 18
    assert len(collect.found[2]) == 0
    assert collect.found[2].image.shape == (0, 3, 16, 16)
    many = {"w_plus": Stage(["w_plus"], 25, rate=0.05, stop_at={"mse": 1e9})}
    assert fit(method(many), Chunks(1, 1)).after == [10]


def test_logged_terms_are_per_image() -> None:
    def logged(count: int) -> dict[str, float]:
        log = Log()
        fit(method({"noise": Stage(["noise"], 1)}), Chunks(count, count), logger=log, log_every_n_steps=1)
        return log.rows[0]

    one, three = logged(1), logged(3)
    assert set(one) == {
        "train/noise/perceptual",
        "train/noise/mse",
        "train/noise/total",
        "train/noise/learning_rate",
    }
    single = embed(generator(), Targets(images(3), names(3)), {"a": Stage(["noise"], 1, rate=1e-9)}, loss())
    assert three["train/noise/mse"] == pytest.approx(float(single.terms["mse"].mean()), rel=1e-4)
    assert one["train/noise/mse"] == pytest.approx(float(single.terms["mse"][0]), rel=1e-4)
    log = Log()
    joint = {"joint": Stage(["w_plus", "noise"], 1, rate=0.5, noise_rate=2.0)}
    fit(method(joint), Chunks(1, 1), logger=log, log_every_n_steps=1)
    assert log.rows[0]["train/joint/learning_rate"] == 0.5
    assert log.rows[0]["train/joint/noise_learning_rate"] == 2.0


@pytest.mark.parametrize("stages", [STAGES, TUNED], ids=["stages", "tuned"])
def test_resumed_equals_uninterrupted_from_every_checkpoint(tmp_path: Path, stages: dict[str, Stage]) -> None:
    store = tmp_path / "store"

    def run(root: Path, resume: Path | None = None, keep: Path | None = None) -> tuple[Collect, Any]:
        checkpoints = Checkpoints(monitor=None, every_n_batches=1)
        collect = fit(
            method(stages),
            Chunks(3, 2),
            resume=resume,
            default_root_dir=root,
            enable_checkpointing=True,
            callbacks=[checkpoints, *([KeepEvery(keep)] if keep else [])],
        )
        return collect, read_checkpoint(root / "checkpoints" / "last.ckpt")

    whole, last = run(tmp_path / "whole", keep=store)
    stops = sorted(store.iterdir())
    steps = method(stages).steps_per_chunk(2)
    assert len(stops) == 2 * steps
    for stop in stops[:-1]:
        torch.manual_seed(99)
        resumed, ends = run(tmp_path / f"resumed-{stop.stem}", resume=stop)
        done = int(stop.stem) + 1  # batches
        rest = whole.found[done // steps :]
        assert len(resumed.found) == len(rest), stop.stem
        for mine, theirs in zip(resumed.found, rest, strict=True):
            for field in ("w_plus", "image", "noise", "steps", "terms", "trace", "tuned", "total"):
                assert_same(getattr(mine, field), getattr(theirs, field), f"{stop.stem}/{field}")
        for part in ("inversion", "batches_seen", "images_seen", "epoch", "global_step"):
            assert_same(ends[part], last[part], f"{stop.stem}/{part}")
    halfway = read_checkpoint(stops[2])
    assert not any(name.startswith("generator") for name in halfway["state_dict"])


def test_a_checkpoint_of_another_search_is_refused(tmp_path: Path) -> None:
    def run(inversion: Inversion, root: Path, resume: Path | None = None) -> None:
        checkpoints = Checkpoints(monitor=None, every_n_batches=1)
        options: dict[str, Any] = {"default_root_dir": root, "enable_checkpointing": True}
        fit(inversion, Chunks(1, 1), resume=resume, callbacks=[checkpoints], **options)

    run(method(STAGES), tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=r"other settings: stages\.noise\.steps was 3 and is 9"):
        run(
            method(STAGES | {"noise": Stage(["noise"], 9, rate=0.05, weights={"perceptual": 0})}),
            tmp_path,
            last,
        )
    other = method(STAGES)
    other.generator.synthesis.b16.conv1.bias.data += 1
    with pytest.raises(UserError, match="the images were searched for in generator"):
        run(other, tmp_path, last)


@pytest.mark.parametrize(("precision", "tolerance"), [(bf16, 0.05), (fp64, 1e-3)], ids=["bf16", "fp64"])
def test_other_precisions_find_nearly_the_same(precision: Any, tolerance: float) -> None:
    stages = {"w_plus": Stage(["w_plus"], 8, rate=0.01)}
    start = embed(generator(), Targets(images(2), names(2)), {"a": Stage(["w_plus"], 1, rate=1e-12)}, loss())
    single = fit(method(stages), Chunks(2, 2)).found[0]
    other = fit(method(stages), Chunks(2, 2), precision()).found[0]
    assert other.w_plus.dtype == (torch.float64 if precision is fp64 else torch.float32)
    moved = (single.image - start.image).abs().mean()
    assert moved > 1e-3
    assert (other.image - single.image).abs().mean() < max(tolerance * 4 * float(moved), 1e-6)
    assert other.image.dtype == other.w_plus.dtype  # pictures are never drawn in half precision


def test_half_precision_with_a_common_scale_is_refused() -> None:
    with pytest.raises(UserError, match=r"precision=fp16: .* take bf16 or fp32"):
        fit(method(STAGES), Chunks(1, 1), fp16())


def test_each_frame_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    stages = {"w_plus": Stage(["w_plus"], 3, rate=0.05)}
    found = fit(method(stages, start=Start("previous")), Chunks(3, 1)).found
    latent: Tensor | None = None
    for index, one in enumerate(found):
        wanted = Targets(images()[index : index + 1], names()[index : index + 1])
        plain = embed(generator(), wanted, stages, loss(), Start("mean"), latent=latent)
        torch.testing.assert_close(one.w_plus, plain.w_plus, rtol=1e-6, atol=1e-6)
        latent = plain.w_plus
    with pytest.raises(UserError, match=r"method.start.kind=previous with data.batch_size=2"):
        fit(method(stages, start=Start("previous")), Chunks(3, 2))


def test_networks_that_are_no_style_generators_and_data_for_training_are_refused() -> None:
    with pytest.raises(UserError, match="i2i-invert"):
        Inversion(torch.nn.Conv2d(3, 3, 1), STAGES, loss(), Start())
    data = Chunks(2, 1)
    data.one_sided = False  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="i2i-invert"):
        fit(method(STAGES), data)

    class Shuffled(Chunk):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"real": images(2)[index % 2][None], "name": [f"{index}"]}

    class Training(Chunks):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Shuffled({}, 4), batch_size=None)  # type: ignore[arg-type]

    with pytest.raises(UserError, match="this trains nothing"):
        fit(method(STAGES), Training(2, 1))


def test_the_preview_shows_the_best_so_far() -> None:
    shown: list[dict[str, Tensor]] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            shown.append(pl_module.preview({"real": images(1)}))

    inversion = method(STAGES)
    found = fit(inversion, Chunks(2, 2), callbacks=[Look()]).found[0]
    assert torch.equal(shown[0]["target"], images(2))
    assert torch.equal(shown[-1]["output"], found.image)
    assert not torch.equal(shown[0]["output"], found.image)


def test_the_preview_shows_each_image_with_its_own_weights() -> None:
    """While the generator is tuned for one image, the others are drawn as it is no concern of theirs."""
    shown: list[Tensor] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            shown.append(pl_module.preview({"real": images(1)})["output"])

    stages = {
        "w": Stage(["w"], 2, rate=0.05, keep="last"),
        "tune": Stage(["generator"], 3, rate=0.01, keep="last"),
    }
    found = fit(method(stages), Chunks(3, 3), callbacks=[Look()]).found[0]
    pivots = shown[1]
    for batch, image in enumerate(shown[2:]):
        present = batch // 3
        for index in range(3):
            if index < present:
                assert torch.equal(image[index], found.image[index]), (batch, index)
            elif index > present:
                assert torch.equal(image[index], pivots[index]), (batch, index)
    assert not torch.equal(shown[2][0], pivots[0]), "the present image moves"
    assert not torch.equal(shown[2][0], found.image[0])
    assert torch.equal(shown[-1], found.image)


def test_the_preset_runs_under_the_trainer() -> None:
    parts = preset("fast", 3)
    inversion = Inversion(generator(), parts["stages"], parts["loss"], parts["start"], 0)
    found = fit(inversion, Chunks(2, 2)).found[0]
    plain = embed(generator(), Targets(images(2), names(2)), parts["stages"], parts["loss"], parts["start"])
    torch.testing.assert_close(found.w_plus, plain.w_plus, rtol=1e-5, atol=1e-5)
