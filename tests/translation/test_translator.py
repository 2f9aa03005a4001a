"""The translator: images of every sort and size, in one piece and in tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from i2i_lightning.data.color import lab_to_rgb, rgb_to_lab
from i2i_lightning.data.transforms import scale_to_network
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.networks.unet import UNet
from i2i_lightning.translation.modes import Draws, in_test_mode
from i2i_lightning.translation.tiling import plan, seam_steps
from i2i_lightning.translation.translator import Translator, find_device
from i2i_lightning.types import ImageFormat, UserError

from .conftest import Save, picture

RGB, GREY = ImageFormat("image", 3), ImageFormat("image", 1)


def resnet(in_channels: int = 3, out_channels: int = 3, **options: object) -> ResNetGenerator:
    torch.manual_seed(0)
    return ResNetGenerator(in_channels, out_channels, 4, 1, **{"init_gain": 0.1, **options})


def translator(
    network: nn.Module | None = None, input: ImageFormat = RGB, output: ImageFormat = RGB, **options: object
) -> Translator:
    network = network or resnet(input.channels, output.channels)
    return Translator(network, input, output, device="cpu", **options)


class Keep(nn.Module):
    """Return the input, so that what happens around a network can be seen."""

    size_multiple = 16

    def check_size(self, height: int, width: int) -> None:
        if height % 16 or width % 16:
            raise UserError("not a multiple of 16")

    def forward(self, x: Tensor) -> Tensor:
        self.check_size(*x.shape[-2:])
        return x


# Any size.


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (8, 8), (13, 21), (16, 32), (33, 40)])
@pytest.mark.parametrize("kind", ["resnet", "unet"])
def test_any_size(size: tuple[int, int], kind: str) -> None:
    torch.manual_seed(0)
    network = resnet() if kind == "resnet" else UNet(3, 3, 4, 4)
    out = translator(network).network(torch.rand(2, 3, *size) * 2 - 1, seeds=[1, 2])
    assert out.shape == (2, 3, *size)
    assert out.isfinite().all()


def test_sizes_the_network_takes_pass_unchanged() -> None:
    network, image = resnet(), torch.rand(1, 3, 16, 24) * 2 - 1
    assert torch.equal(translator(network).network(image), network.eval()(image).detach())


def test_padding_reflects() -> None:
    image = torch.rand(1, 3, 40, 50)
    inputs: list[Tensor] = []
    network = Keep()
    network.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    assert torch.equal(translator(network).network(image), image)
    expected = torch.nn.functional.pad(image, (0, 14, 0, 8), mode="reflect")
    assert torch.equal(inputs[0], expected)


def test_padding_of_a_single_pixel_repeats_it() -> None:
    inputs: list[Tensor] = []
    network = Keep()
    network.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    translator(network).network(torch.full((1, 3, 1, 1), 0.3))
    assert inputs[0].shape == (1, 3, 16, 16)
    assert (inputs[0] == 0.3).all()


def test_a_batch_of_several_sizes_gives_what_each_gives_alone() -> None:
    network = translator(resnet(norm="batch", dropout=True), seed=3)
    sizes = [(21, 30), (24, 29), (23, 32)]
    pictures = [torch.from_numpy(picture(*size, seed=i)).permute(2, 0, 1) for i, size in enumerate(sizes)]
    assert len({network.padded_size(*size) for size in sizes}) == 1
    together = network.pictures(pictures, ["a", "b", "c"], torch.float32)
    for one, key, out in zip(pictures, "abc", together, strict=True):
        assert out.shape == one.shape
        torch.testing.assert_close(network.pictures([one], [key], torch.float32)[0], out, rtol=0, atol=1e-5)


def test_network_wants_a_seed_for_each() -> None:
    with pytest.raises(ValueError, match="1 seeds for 2 images"):
        translator().network(torch.zeros(2, 3, 8, 8), seeds=[1])


def test_a_network_with_noise() -> None:
    torch.manual_seed(0)
    network = UNet(3, 3, 4, 8, z_channels=5, dropout="none", init_gain=0.1)
    noisy = translator(network, z_dim=5)
    images = torch.rand(1, 3, 32, 32).expand(3, -1, -1, -1)
    one, same, other = noisy.network(images, seeds=[1, 1, 2])
    torch.testing.assert_close(one, same, rtol=0, atol=1e-5)
    assert (one - other).abs().max() > 1e-3


# Every sort of image.


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_arrays_keep_their_type_and_axes(dtype: type, channels: int) -> None:
    format = ImageFormat("image", channels)
    image = picture(20, 30, channels)
    if dtype == np.uint16:
        image = image.astype(np.uint16) * 257
    elif dtype != np.uint8:
        image = (image / 127.5 - 1).astype(dtype)
    keep = translator(Keep(), format, format)
    out = keep(image)
    assert out.dtype == dtype
    assert out.shape == image.shape
    np.testing.assert_allclose(out, image, rtol=0, atol=1e-6 if np.dtype(dtype).kind == "f" else 0)
    if channels == 1:
        flat = keep(image[:, :, 0])
        assert flat.shape == (20, 30)


def test_levels_are_rounded_not_truncated() -> None:
    class Below(Keep):
        def forward(self, x: Tensor) -> Tensor:
            return x - 0.4 / 127.5  # 0.4 levels lower: truncation would lose a whole one

    image = picture(16, 16).clip(1, 255)
    np.testing.assert_array_equal(translator(Below())(image), image)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("I;16", 1), ("F", 1)])
def test_pil_images_keep_their_mode(mode: str, channels: int) -> None:
    format = ImageFormat("image", channels)
    pixels = picture(20, 30, channels)
    if mode == "I;16":
        image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 256)
    elif mode == "F":
        image = Image.fromarray(pixels[:, :, 0].astype(np.float32) / 127.5 - 1)
    else:
        image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    assert image.mode == mode
    out = translator(Keep(), format, format)(image)
    assert out.mode == mode
    np.testing.assert_allclose(np.asarray(out), np.asarray(image), rtol=0, atol=1e-6)


def test_pil_images_are_turned_upright() -> None:
    image = Image.fromarray(picture(20, 30))
    image.getexif()[0x0112] = 6
    assert translator(Keep())(image).size == (20, 30)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("batched", [False, True])
def test_tensors(dtype: torch.dtype, batched: bool) -> None:
    pixels = torch.from_numpy(picture(20, 30)).permute(2, 0, 1)
    image = pixels if dtype == torch.uint8 else scale_to_network(pixels).to(dtype)
    image = torch.stack([image, image.flip(-1)]) if batched else image
    out = translator(Keep())(image.requires_grad_(dtype.is_floating_point))
    assert out.dtype == dtype
    assert not out.requires_grad
    torch.testing.assert_close(out, image.detach(), rtol=0, atol=1e-3 if dtype == torch.float16 else 1e-6)


def test_all_sorts_agree() -> None:
    network = translator(resnet(norm="batch", dropout=True), tile_px=32)
    for size in ((24, 30), (90, 70)):
        pixels = picture(*size)
        out = network(pixels, "key")
        np.testing.assert_array_equal(np.asarray(network(Image.fromarray(pixels), "key")), out)
        tensor = network(torch.from_numpy(pixels).permute(2, 0, 1), "key")
        np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), out)
        floats = network((pixels / 127.5 - 1).astype(np.float32), "key")
        np.testing.assert_allclose(floats, out / 127.5 - 1, rtol=0, atol=1.01 / 127.5)


def test_other_channels_are_one_clear_error() -> None:
    with pytest.raises(UserError, match=r"an image of 1 channel: this generator takes RGB images$"):
        translator()(picture(20, 30, 1))
    with pytest.raises(UserError, match=r"takes RGB images: the axes are \(H, W, C\)$"):
        translator()(picture(20, 30).transpose(2, 0, 1))
    with pytest.raises(UserError, match=r"of 4 channels: this generator takes RGB images$"):
        translator()(Image.fromarray(picture(20, 30, 4)))
    with pytest.raises(UserError, match="mode P"):
        translator()(Image.fromarray(picture(20, 30)).quantize(16))
    with pytest.raises(UserError, match="a tensor of shape"):
        translator()(torch.zeros(8, 8))
    with pytest.raises(UserError, match="int64"):
        translator()(torch.zeros(3, 8, 8, dtype=torch.int64))
    with pytest.raises(UserError, match=r"floats from 0 to 255: give floats in \[-1, 1\]"):
        translator()(np.linspace(0, 255, 192, dtype=np.float32).reshape(8, 8, 3))
    with pytest.raises(UserError, match="nan"):
        translator()(np.full((8, 8, 3), np.nan, np.float32))
    with pytest.raises(UserError, match="list"):
        translator()([1])  # type: ignore[call-overload]


def test_convert_match_converts_eight_bits() -> None:
    match = ImageFormat("image", 3, convert="match")
    grey, colour = picture(20, 30, 1), picture(20, 30, 4)
    network = translator(Keep(), match, match)
    np.testing.assert_array_equal(network(grey[:, :, 0]), np.repeat(grey, 3, 2))
    np.testing.assert_array_equal(network(colour), colour[:, :, :3])
    palette = Image.fromarray(colour[:, :, :3]).quantize(16)
    np.testing.assert_array_equal(np.asarray(network(palette)), np.asarray(palette.convert("RGB")))
    to_grey = ImageFormat("image", 1, convert="match")
    expected = np.asarray(Image.fromarray(colour[:, :, :3]).convert("L"))
    out = translator(Keep(), to_grey, to_grey)(colour[:, :, :3])
    np.testing.assert_array_equal(out[:, :, 0], expected)


def test_read_only_and_mirrored_arrays() -> None:
    image = picture(20, 30)
    image.flags.writeable = False
    np.testing.assert_array_equal(translator(Keep())(image), image)
    np.testing.assert_array_equal(translator(Keep())(image[:, ::-1]), image[:, ::-1])


# Label maps.


def test_label_maps_in_and_out() -> None:
    labels = ImageFormat("labels", 5, palette=tuple((10 * i, 0, 255 - i) for i in range(5)))
    ids = np.random.default_rng(0).integers(0, 5, (20, 30))
    network = translator(Keep(), labels, labels)
    out = network(ids)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, ids)
    np.testing.assert_array_equal(network(np.eye(5, dtype=np.uint8)[ids]), ids)
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette([0, 0, 0] * 256)
    drawn = network(image)
    assert drawn.mode == "P"
    np.testing.assert_array_equal(np.asarray(drawn), ids)
    assert drawn.getpalette()[:6] == [0, 0, 255, 10, 0, 254]
    tensor = network(torch.from_numpy(ids)[None])
    assert tensor.shape == (1, 20, 30)
    np.testing.assert_array_equal(tensor[0].numpy(), ids)
    with pytest.raises(UserError, match="label id 5: this generator has classes 0 to 4"):
        network(ids + 1)
    with pytest.raises(UserError, match="label maps of 5 classes, as integer ids"):
        network(ids.astype(np.float32))
    with pytest.raises(UserError, match="as index images"):
        network(Image.fromarray(picture(8, 8)))


def test_images_from_label_maps_have_the_depth_of_training() -> None:
    ids = np.zeros((16, 16), np.uint8)
    for dtype in ("uint8", "uint16", "float32"):
        network = translator(None, ImageFormat("labels", 5), ImageFormat("image", 3, dtype))
        out = network(ids)
        assert out.dtype == np.dtype(dtype)
        assert out.shape == (16, 16, 3)


def test_many_classes() -> None:
    labels = ImageFormat("labels", 300)
    ids = np.arange(16 * 32).reshape(16, 32) % 300
    out = translator(Keep(), labels, labels)(ids)
    assert out.dtype == np.uint16
    np.testing.assert_array_equal(out, ids)


# Colour from lightness.


class GivenChroma(nn.Module):
    """Return the same chroma everywhere."""

    size_multiple = 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.2, -0.1]).view(1, 2, 1, 1).expand(len(x), -1, *x.shape[-2:])


@pytest.mark.parametrize("tile_px", [None, 16])
def test_lightness_goes_through_and_chroma_joins_it(tile_px: int | None) -> None:
    lab = translator(GivenChroma(), ImageFormat("lightness", 1), ImageFormat("chroma", 2), tile_px=tile_px)
    photo = picture(40, 50) // 2 + 60  # away from the ends, where colours are cut off
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    lightness = rgb_to_lab(pixels)[:, :1]
    chroma = torch.tensor([22.0, -11.0]).view(1, 2, 1, 1).expand(1, 2, 40, 50)
    expected = lab_to_rgb(torch.cat([lightness, chroma], 1))[0].permute(1, 2, 0).mul(255).round().numpy()
    out = lab(photo)
    assert out.dtype == np.uint8
    np.testing.assert_allclose(out, expected, rtol=0, atol=1)
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    assert lab(Image.fromarray(grey)).mode == "RGB"
    assert lab(grey).shape == (40, 50, 3)
    assert lab(photo.astype(np.uint16) * 257).dtype == np.uint16


def test_chroma_needs_lightness() -> None:
    with pytest.raises(UserError, match="only with lightness"):
        translator(None, RGB, ImageFormat("chroma", 2))
    with pytest.raises(UserError, match="no image file holds alone"):
        translator(None, ImageFormat("chroma", 2), RGB)


# Tiles.


def whole_and_tiled(network: nn.Module, image: Tensor, tile_px: int) -> tuple[Tensor, Tensor]:
    """Translate in tiles, and in one piece with the statistics that the tiles had."""
    tiled = translator(network, tile_px=tile_px)
    statistics = []
    take = tiled._statistics

    def keep(view: object, seed: int) -> object:
        statistics.append(take(view, seed))
        return statistics[-1]

    tiled._statistics = keep
    out = tiled.network(image, seeds=[5])[0]
    padded = tiled.padded_size(*image.shape[-2:])
    bottom, right = padded[0] - image.shape[-2], padded[1] - image.shape[-1]
    inputs = torch.nn.functional.pad(image, (0, right, 0, bottom), mode="reflect")
    with in_test_mode(network, "train", Draws([5]), statistics[0] if statistics else None) as lent:
        whole = lent(inputs)[0, :, : image.shape[-2], : image.shape[-1]]
    return whole, out


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("dropout", [False, True])
def test_tiles_give_the_whole_image(norm: str, dropout: bool) -> None:
    """With the same statistics only what lies beyond a tile's edge differs, and that is thrown away."""
    network = resnet(norm=norm, dropout=dropout, init_gain=0.3 if norm == "none" else 0.1)
    image = torch.from_numpy(picture(301, 402)).permute(2, 0, 1)[None] / 127.5 - 1
    whole, tiled = whole_and_tiled(network, image, tile_px=128)
    tiling = plan(304, 404, 128, 4)
    assert tiling.num_tiles > 12
    assert whole.std() > 0.1
    # A network of one block sees some 25 px far, a little more than the 16 px that are thrown away.
    assert (whole - tiled).abs().max() < 0.02
    assert (whole - tiled).abs().mean() < 1e-5
    residual, steps = seam_steps(tiled - whole, tiling), seam_steps(tiled, tiling)
    assert steps.border <= steps.inside
    assert residual.border < 1e-3 * steps.inside


def test_statistics_of_the_image_hide_the_tiles_that_their_own_would_show() -> None:
    """A picture that is dark on one side and bright on the other: each tile would become equally bright."""
    network = resnet()
    shade = torch.linspace(-0.8, 0.8, 512).expand(1, 3, 256, 512).clone()
    shade += torch.randn(1, 3, 256, 512) * 0.05
    whole, tiled = whole_and_tiled(network, shade, tile_px=128)
    alone = translator(network).network
    by_tile = torch.cat([alone(shade[..., left : left + 128])[0] for left in range(0, 512, 128)], dim=2)
    error, own_error = ((out - whole).abs().mean() for out in (tiled, by_tile))
    assert error < 0.1 * own_error
    tiling = plan(256, 512, 128, 4)
    steps = seam_steps(tiled, tiling)
    assert steps.border <= 1.2 * steps.inside


def test_statistics_are_close_to_those_of_the_whole_image() -> None:
    image = torch.from_numpy(picture(300, 400)).permute(2, 0, 1)[None] / 127.5 - 1
    network = resnet()
    exact = translator(network, tile_px=None).network(image)
    tiled = translator(network, tile_px=128).network(image)
    assert (exact - tiled).abs().mean() < 0.25 * exact.std()


def test_batches_of_tiles_change_nothing() -> None:
    network = translator(resnet(norm="batch", dropout=True), tile_px=64)
    pixels = torch.from_numpy(picture(150, 200)).permute(2, 0, 1)
    one = network.pictures([pixels], ["a"], torch.float32, tile_batch=1)[0]
    three = network.pictures([pixels], ["a"], torch.float32, tile_batch=3)[0]
    torch.testing.assert_close(one, three, rtol=0, atol=1e-5)


def test_no_tile_is_larger_than_said() -> None:
    network = resnet()
    areas: list[int] = []
    network.register_forward_pre_hook(lambda _, given: areas.append(given[0].numel() // 3))
    tiled = translator(network, tile_px=64)
    tiled(picture(300, 200))
    tiled(picture(1000, 4))
    assert max(areas) <= 1.5 * 64**2  # sides are rounded, which counts for thin ones
    areas.clear()
    tiled(picture(60, 60))
    assert areas == [60 * 60]
    translator(network, tile_px=None)(picture(300, 200))
    assert areas[-1] == 300 * 200


def test_label_maps_in_tiles() -> None:
    labels = ImageFormat("labels", 5)
    ids = np.random.default_rng(0).integers(0, 5, (90, 70))
    np.testing.assert_array_equal(translator(Keep(), labels, labels, tile_px=32)(ids), ids)


def test_sixteen_bits_in_tiles() -> None:
    image = np.random.default_rng(0).integers(0, 65536, (90, 70, 3)).astype(np.uint16)
    np.testing.assert_allclose(translator(Keep(), tile_px=32)(image), image, rtol=0, atol=1)


# Loading and options.


def test_load(save_checkpoint: Save) -> None:
    path = save_checkpoint(test_mode="eval")
    loaded = Translator.load(path, device="cpu", seed=4)
    assert (loaded.direction, loaded.test_mode, loaded.seed) == ("ab", "eval", 4)
    assert Translator.load(path, device="cpu", test_mode="train").test_mode == "train"
    image = picture(20, 30)
    np.testing.assert_array_equal(loaded(image), Translator.load(str(path), device="cpu")(image))
    assert loaded(image).std() > 1


def test_a_run_folder_stands_for_its_last_checkpoint_else_the_best(save_checkpoint: Save) -> None:
    best = save_checkpoint("best.ckpt", weights_seed=1)
    run = best.parents[1]
    image = picture(20, 30)
    np.testing.assert_array_equal(Translator.load(run)(image), Translator.load(best)(image))
    last = save_checkpoint("last.ckpt", weights_seed=2)
    np.testing.assert_array_equal(Translator.load(run)(image), Translator.load(last)(image))


def test_missing_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such"):
        Translator.load(tmp_path / "none.ckpt")
    with pytest.raises(UserError, match=str(tmp_path)):
        Translator.load(tmp_path)


def test_impossible_options() -> None:
    with pytest.raises(UserError, match="test_mode=fast: give train or eval"):
        translator(test_mode="fast")
    with pytest.raises(UserError, match="precision=fp8: choose one of"):
        translator(precision="fp8")
    with pytest.raises(UserError, match="tile_px=3: give at least 16"):
        translator(tile_px=3)


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device(None) == find_device("auto")
    with pytest.raises(UserError, match="device=toaster: choose one of auto, cpu, cuda"):
        find_device("toaster")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device=cuda: torch finds none on this machine"):
            find_device("cuda")


def test_half_precision_is_close(tmp_path: Path) -> None:
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    full, half = translator(resnet()), translator(resnet(), precision="bf16")
    out = half.network(image)
    assert out.dtype == torch.float32
    assert 0 < (out - full.network(image)).abs().max() < 0.2


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu() -> None:
    image = torch.rand(2, 3, 300, 200) * 2 - 1
    for tile_px in (1024, 64):
        here = translator(resnet(norm="batch", dropout=True), tile_px=tile_px)
        there = Translator(resnet(norm="batch", dropout=True), RGB, RGB, device="cuda", tile_px=tile_px)
        a, b = here.network(image, [1, 2]), there.network(image.cuda(), [1, 2])
        assert b.is_cuda
        torch.testing.assert_close(a, b.cpu(), rtol=0, atol=1e-2)
