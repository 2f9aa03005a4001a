"""Pictures, page and health of a method that translates both ways between sets without pairs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback
from PIL import Image

from i2i_lightning.callbacks.gallery import Gallery
from i2i_lightning.callbacks.health import Health
from i2i_lightning.callbacks.previews import PreviewGrid, preview
from i2i_lightning.callbacks.progress import ProgressBar
from i2i_lightning.callbacks.throughput import Throughput
from i2i_lightning.data.toyfaces.unpaired import ToyFacesUnpairedDataModule
from i2i_lightning.methods.cyclegan import CycleGAN, CycleGANLoss
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from tests.callbacks.test_gallery import Page


def method() -> CycleGAN:
    torch.manual_seed(0)
    networks = (
        *(ResNetGenerator(1, 3, 4, 0), ResNetGenerator(3, 1, 4, 0)),
        *(PatchGAN(1, 4, 1, "instance"), PatchGAN(3, 4, 1, "instance")),
    )
    return CycleGAN(*networks, CycleGANLoss(lambda_identity=0), partial(torch.optim.Adam, lr=1e-3))


def data() -> ToyFacesUnpairedDataModule:
    return ToyFacesUnpairedDataModule("edges_to_photo", 16, 4, 4, num_val=3, batch_size=2)


def test_samples_take_turns_and_columns_show_their_domains(make_trainer: Any) -> None:
    seen = []

    class Asks(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.extend([preview(trainer, 3), preview(trainer, 2)])

    trained, faces = method(), data()
    make_trainer([Asks()], max_epochs=1).fit(trained, datamodule=faces)
    shown, fewer = seen
    assert shown.names == [
        "val_00000", "val_00003", "val_00001", "val_00004", "val_00002", "val_00005",
    ]  # fmt: skip
    assert shown.directions == ["ab", "ba"] * 3
    assert fewer.names == shown.names[:4]
    batch = faces.preview_batch(3)
    with torch.no_grad():
        photo = trained.generator_ab(batch["real_a"][:1])
        expected = faces.display_output(photo, batch["real_a"])[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(shown.samples[0]["output"], expected)
    grey = [shown.samples[0]["input"], shown.samples[0]["cycle"], shown.samples[1]["output"]]
    assert all((picture[..., 0] == picture[..., 2]).all() for picture in grey)
    assert torch.equal(shown.targets[0], batch["real_b"][0])  # no pair, but of the output's domain
    assert torch.equal(shown.targets[1], batch["real_a"][0])
    row = shown.rows()[1]
    assert list(row) == ["input a", "output b", "cycle a", "input b", "output a", "cycle b"]
    np.testing.assert_array_equal(row["input b"], shown.samples[3]["input"])


def test_grid_and_page_show_both_ways(make_trainer: Any, tmp_path: Path) -> None:
    callbacks = [PreviewGrid(2), Gallery(monitor=None), Health(), Throughput(), ProgressBar()]
    make_trainer(callbacks, max_epochs=2).fit(method(), datamodule=data())
    with Image.open(tmp_path / "run/images/epoch_0002.png") as grid:
        assert grid.width == 6 * 128 + 5 * 2 + 2 * 6
    page = Page(tmp_path / "run/index.html")
    for words in (
        "val_00000 · a to b input output cycle",
        "val_00003 · b to a",
        "Over the epochs",
        "generators cycle_a",
        "generators gan_ab",
        "discriminator a accuracy real",
        "discriminator b logits",
    ):
        assert words in page.text, words
    assert "src=''" not in page.html


def test_each_way_is_watched_on_its_own(make_trainer: Any) -> None:
    class Collapsed(CycleGAN):
        def preview(self, batch: Any) -> Any:
            columns = super().preview(batch)
            columns["ab"]["output"] = torch.full_like(columns["ab"]["output"], 0.3)
            columns["ba"]["output"] = columns["ab"]["input"]
            return columns

    health, trained = Health(), method()
    trained.__class__ = Collapsed
    make_trainer([health], max_epochs=2).fit(trained, datamodule=data())
    (warning,) = health.warnings
    assert warning["kind"] == "collapse_ab"
    assert "the generator ab paints nearly the same image" in warning["text"]
    assert "loss.lambda_cycle" in warning["text"]


def test_paired_samples_are_their_own_rows(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    seen = []

    class Asks(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(preview(trainer, 2))

    make_trainer([Asks()], max_epochs=1).fit(scripted(), datamodule=shapes(batch_size=4))
    assert seen[0].rows() is seen[0].samples
    assert seen[0].directions == ["ab", "ab"]


def test_unnamed_batches_do_not_matter(make_trainer: Any) -> None:
    class Unnamed(ToyFacesUnpairedDataModule):
        def to_network(self, batch: Any) -> Any:
            return {name: value for name, value in super().to_network(batch).items() if name != "name_a"}

    seen = []

    class Asks(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(preview(trainer, 1))

    faces = Unnamed("edges_to_photo", 16, 4, 4, num_val=3, batch_size=2)
    make_trainer([Asks()], max_epochs=1).fit(method(), datamodule=faces)
    assert seen[0].names == ["", "val_00003"]
