"""The search: every image by itself, whatever its batch; masks, starts, stops, and its state."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from i2i_lightning.methods.inversion import (
    Embedding,
    InversionLoss,
    Objective,
    Search,
    Stage,
    Start,
    Targets,
    embed,
    render,
    statistics,
)
from i2i_lightning.methods.inversion.leaves import FASTEST, noise_rates
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.types import UserError
from tests.methods.inversions import PRESETS, features, generator, images, loss, names, part, preset, search

W_PLUS = {"w_plus": Stage(["w_plus"], 6, rate=0.05)}


def run(search: Search, targets: Targets, **begin: Any) -> Embedding:
    search.begin(targets, **begin)
    while not search.done:
        search.step()
    return search.embedding()


def targets(count: int = 3, **more: Any) -> Targets:
    return Targets(images(count), names(count), **more)


def close(left: Tensor, right: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PRESETS)
def test_a_batch_equals_its_images_alone(name: str) -> None:
    wanted = targets()
    batch = run(search(name), wanted)
    assert (batch.image - images()).abs().mean() > 0.01  # it has not got there: there is something to compare
    for index in range(3):
        alone = run(search(name), part(wanted, index))
        close(batch.w_plus[index], alone.w_plus[0])
        close(batch.image[index], alone.image[0])
        close(batch.total[index], alone.total[0])
        assert batch.steps[index] == alone.steps[0]
        for key, values in batch.terms.items():
            close(values[index], alone.terms[key][0])
        assert (batch.noise is None) == (alone.noise is None)
        for mine, theirs in zip(batch.noise or [], alone.noise or [], strict=True):
            # Maps that run away, as in joint, are compared by their size.
            close(mine[index] / theirs.abs().max(), theirs[0] / theirs.abs().max())
        if batch.tuned is not None:
            assert alone.tuned is not None
            for key, value in batch.tuned[index].items():
                close(value, alone.tuned[0][key])


def test_noise_rates_follow_what_each_map_does() -> None:
    whole, weaker = generator(), generator()
    for layer in weaker.synthesis.layers:
        layer.noise_strength.data.fill_(0.02)
    whole.load_state_dict(weaker.state_dict())
    for layer in weaker.synthesis.layers[1:]:
        layer.noise_strength.data.mul_(0.1)
    strong, weak = noise_rates(whole), noise_rates(weaker)
    assert len(strong) == len(whole.noise_shapes)
    assert weak[0] == pytest.approx(strong[0], rel=1e-3)
    assert weak[1:] == pytest.approx([10 * rate for rate in strong[1:]], rel=0.3)
    weaker.synthesis.layers[0].noise_strength.data.zero_()
    assert noise_rates(weaker)[0] == FASTEST  # and not infinite
    with pytest.raises(UserError, match=r"^noise_rate=fast: give a positive number, auto or null$"):
        Stage(["noise"], 1, noise_rate="fast")  # type: ignore[arg-type]


def test_noise_rates_are_those_of_full_precision() -> None:
    network = generator()
    for layer in network.synthesis.layers:
        layer.noise_strength.data.fill_(1e-3)
    single = noise_rates(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert noise_rates(network) == single


def test_automatic_rates_reach_the_optimiser_map_by_map() -> None:
    joint = {"joint": Stage(["w_plus", "noise"], 2, rate=0.5, noise_rate="auto")}
    mine = Search(generator(), joint, loss())
    mine.begin(targets(1))
    mine.step()
    rates = [group["lr"] for group in mine.optimizers["joint"].param_groups]
    assert rates == [0.5, *noise_rates(generator())]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_moves_what_it_says_and_nothing_else(name: str) -> None:
    mine = search(name)
    before = copy.deepcopy(mine.generator.state_dict())
    found = run(mine, targets())
    assert all(torch.equal(value, before[key]) for key, value in mine.generator.state_dict().items())
    assert not any(p.requires_grad for p in mine.generator.parameters())
    assert mine.loss.perceptual is not None
    assert not any(p.requires_grad for p in mine.loss.perceptual.network.parameters())
    moves = {what for stage in mine.stages.values() for what in stage.moves}
    assert (found.noise is not None) == ("noise" in moves or mine.start.noise == "random")
    assert (found.tuned is not None) == ("generator" in moves)
    rows_differ = not torch.equal(found.w_plus, found.w_plus[:, :1].expand_as(found.w_plus))
    assert rows_differ == ("w_plus" in moves)
    close(found.image, render(mine.generator, found.w_plus, found.noise, found.tuned), 0)
    assert torch.isfinite(found.total).all()
    assert found.settings["stages"].keys() == mine.stages.keys()


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "stylegan2_projector"])
def test_every_preset_gets_nearer(name: str) -> None:
    mine = search(name, steps=15)
    mine.begin(targets())
    before = mine.embedding()
    after = run(mine, targets())
    both = [found.terms["mse"] + found.terms["perceptual"] for found in (after, before)]
    assert (both[0] < both[1]).all()


def test_the_gradient_of_an_image_is_the_same_in_every_batch() -> None:
    """A mean over the batch would divide it by three."""
    wanted = targets()
    gradients = []
    for some in (wanted, part(wanted, 0)):
        mine = Search(generator(), W_PLUS, loss())
        mine.begin(some)
        with torch.enable_grad():
            sum(value.sum() for value in mine.terms().values()).backward()  # type: ignore[union-attr]
        assert mine.latent.grad is not None
        gradients.append(mine.latent.grad[0])
    close(*gradients, tolerance=1e-5)


def test_draws_belong_to_the_name_and_the_seed() -> None:
    stages = {"w": Stage(["w", "noise"], 3, w_noise=0.1, keep="last")}
    start = Start("random", noise="random")
    first = embed(generator(), targets(2), stages, loss(), start, seed=1)
    other = Targets(images(2).flip(0), names(2)[::-1])  # the same images in the other order
    second = embed(generator(), other, stages, loss(), start, seed=1)
    close(first.w_plus, second.w_plus.flip(0))
    third = embed(generator(), targets(2), stages, loss(), start, seed=2)
    assert (first.w_plus - third.w_plus).abs().max() > 0.1
    same_image = Targets(images(1).expand(2, -1, -1, -1), names(2))
    assert not torch.allclose(*embed(generator(), same_image, stages, loss(), start).w_plus)


# ----------------------------------------------------------------------------------------------------- starts


def begun(start: Start, moves: str = "w_plus", label: Tensor | None = None, **begin: Any) -> Search:
    mine = Search(generator(0 if label is None else label.shape[1]), {"a": Stage([moves], 2)}, loss(), start)
    mine.begin(targets(label=label), **begin)
    return mine


def test_statistics_of_w_are_those_of_ten_thousand_z() -> None:
    import numpy as np

    network = generator(dtype=torch.float64)
    z = torch.from_numpy(np.random.RandomState(123).randn(10_000, 8))
    w = network.mapping.to_w(z)
    found = statistics(network)
    close(found.mean[0], w.mean(0), 1e-12)
    close(found.std[0], ((w - w.mean(0)) ** 2).sum(1).mean() ** 0.5, 1e-12)


def test_the_mean_start_is_the_mean_of_every_label() -> None:
    label = torch.eye(3)[[2, 0, 2]]
    mine = begun(Start("mean"), label=label)
    found = statistics(mine.generator, label[1:2])
    close(mine.latent[1], found.mean.expand(mine.generator.num_ws, -1))
    assert torch.equal(mine.latent[0], mine.latent[2])
    assert not torch.equal(mine.latent[0], mine.latent[1])


def test_random_starts_are_uniform_and_mapped_ones_are_mapped() -> None:
    uniform = begun(Start("random")).latent.detach()
    assert uniform.shape == (3, 6, 8)
    assert uniform.abs().max() <= 1
    assert uniform.std() == pytest.approx(3**-0.5, rel=0.15)
    assert begun(Start("random"), "z").latent.abs().max() > 1
    mine = begun(Start("mapped", truncation=0.5))
    z = begun(Start("mapped"), "z").latent
    w = mine.generator.mapping.to_w(z)
    mean = mine.statistics().mean
    close(mine.latent[:, 0], mean + 0.5 * (w - mean), 1e-5)
    assert torch.equal(mine.latent, mine.latent[:, :1].expand_as(mine.latent))


@pytest.mark.parametrize("moves", ["z", "w", "w_plus"])
def test_the_best_start_is_the_best_of_all_candidates(moves: str) -> None:
    network = generator()
    candidates = 20
    # An image that the generator draws from the candidate number 17.
    probe = begun(Start("best", candidates=candidates), moves)
    from i2i_lightning.methods.inversion.targets import normal

    z = normal((candidates, 8), 0, "candidates")
    w = network.mapping.to_w(z)
    wanted = Targets(network.synthesis(w[17:18, None].expand(-1, 6, -1)).detach(), ["seventeen"])
    probe.begin(wanted)
    close(probe.latent[0], z[17] if moves == "z" else w[17].expand(probe.latent.shape[1], -1), 1e-5)
    if moves != "z":  # the mean is one of them
        mean = probe.statistics().mean
        probe.begin(Targets(network.synthesis(mean[:, None].expand(-1, 6, -1)).detach(), ["mean"]))
        close(probe.latent[0, 0], mean[0])


def test_given_latents_and_noise_are_taken() -> None:
    network = generator()
    w_plus = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1))
    noise = [torch.randn(1, 1, *shape) for shape in network.noise_shapes]
    mine = begun(Start("given"), latent=w_plus, noise=noise)
    assert torch.equal(mine.latent, w_plus)
    assert torch.equal(mine.noise[2], noise[2].expand(3, -1, -1, -1))
    assert torch.equal(begun(Start(), "w", latent=w_plus[:, :1].expand(-1, 6, -1)).latent, w_plus[:, :1])
    assert torch.equal(begun(Start(), latent=w_plus[:1, 0]).latent, w_plus[:1, :1].expand(3, 6, -1))
    with pytest.raises(UserError, match="no latent to begin with"):
        begun(Start("given"))
    with pytest.raises(UserError, match="rows of the latent to begin with differ"):
        begun(Start(), "w", latent=w_plus)
    with pytest.raises(UserError, match=r"takes \(3, 6, 8\) for 3 images"):
        begun(Start(), latent=torch.zeros(3, 5, 8))
    with pytest.raises(UserError, match="NaN"):
        begun(Start(), latent=w_plus * torch.nan)
    with pytest.raises(UserError, match="noise: maps of"):
        begun(Start(), noise=noise[:2])


def test_stages_go_on_where_the_one_before_ended() -> None:
    stages = {"z": Stage(["z"], 3), "w": Stage(["w"], 3), "w_plus": Stage(["w_plus"], 3)}
    mine = Search(generator(), stages, loss(), Start("mapped"))
    mine.begin(targets())
    for _ in range(3):
        mine.step()
    assert mine.space == "w"
    first = mine.latent.detach().clone()
    close(first, mine.anchor[:, :1], 0)
    for _ in range(3):
        mine.step()
    assert mine.space == "w_plus"
    assert torch.equal(mine.latent, mine.latent[:, :1].expand_as(mine.latent))
    assert not torch.equal(mine.latent[:, :1], first)


# -------------------------------------------------------------------------------------------- masks and terms


def test_a_pixel_mask_leaves_the_rest_out() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    other = images().clone()
    other[..., 8:] = 1 - other[..., 8:]
    only_pixels = loss(lambda_perceptual=0)
    with_mask = [
        embed(generator(), Targets(real, names(), mask=mask), W_PLUS, only_pixels)
        for real in (images(), other)
    ]
    close(with_mask[0].w_plus, with_mask[1].w_plus, 0)
    without = embed(generator(), targets(), W_PLUS, only_pixels)
    assert (without.w_plus - with_mask[0].w_plus).abs().max() > 1e-3
    difference = (with_mask[0].image - images()) * mask
    close(with_mask[0].terms["mse"], difference.square().flatten(1).mean(1))


def test_a_mask_of_features_is_brought_to_their_size() -> None:
    mask = torch.zeros(3, 1, 16, 16)
    mask[:, :, :, :8] = 1
    other = images().clone()
    other[..., 12:] = 0  # four pixels away: no feature inside of the mask sees it
    only_features = loss(lambda_mse=0)
    found = [
        embed(generator(), Targets(real, names(), perceptual_mask=mask), W_PLUS, only_features)
        for real in (images(), other)
    ]
    close(found[0].w_plus, found[1].w_plus, 0)
    free = embed(generator(), targets(), W_PLUS, only_features)
    assert (free.w_plus - found[0].w_plus).abs().max() > 1e-3
    # Without a mask of its own, the mask of pixels holds for features too.
    same = embed(generator(), Targets(images(), names(), mask=mask), W_PLUS, only_features)
    close(same.w_plus, found[0].w_plus, 0)


def test_features_beside_a_hole_are_those_of_what_is_known() -> None:
    """The picture that a hole was cut into is as good a filling as there is."""
    mask = torch.ones(1, 1, 16, 16)
    mask[..., 4:9, 5:10] = 0
    whole, index = images(), torch.arange(3)
    cut = whole * mask
    cost = []
    for holes in (False, True):
        wanted = Targets(cut, names(), mask=mask, holes=holes).to(whole.device, whole.dtype)
        cost.append(Objective(loss(), wanted, ["perceptual"]).terms(whole, {"perceptual": 1.0}, index))
    assert (cost[0]["perceptual"] > 1e-6).all()
    close(cost[1]["perceptual"], torch.zeros(3), 1e-12)


def test_outside_of_the_mask_another_image_counts() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    other = -images()
    wanted = Targets(images(), names(), mask=mask, outside=other)
    stages = {"noise": Stage(["noise"], 5, rate=0.1, weights={"perceptual": 0})}
    found = embed(generator(), wanted, stages, loss(lambda_mse_outside=3.0))
    inside = ((found.image - images()) * mask).square().flatten(1).mean(1)
    outside = ((found.image - other) * (1 - mask)).square().flatten(1).mean(1)
    close(found.terms["mse"], inside)
    close(found.terms["mse_outside"], outside)
    close(found.total, inside + 3 * outside)


def test_style_compares_gram_matrices_inside_its_mask() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :12] = 1
    style = images(4)[3:]
    options = {"perceptual": features(("conv1_1", "conv3_3")), "lambda_perceptual": 0.0, "lambda_mse": 0.0}
    objective = loss(**options, lambda_style=1.0)
    wanted = Targets(images(), names(), style=style, style_mask=mask)
    mine = Search(generator(), W_PLUS, objective)
    mine.begin(wanted)
    before = mine.embedding().terms["style"]
    found = run(Search(generator(), W_PLUS, objective), wanted)
    assert (found.terms["style"] < before).all()
    other = style.clone()
    other[..., 12:] = 0
    network = features(("conv1_1", "conv3_3"))
    masked = [network.features(image)["conv3_3"][..., :2] for image in (style, other)]
    assert not torch.equal(*masked)  # what the network sees there does reach over, but Gram takes the inside
    with pytest.raises(UserError, match="style is compared in conv3_3"):
        Search(generator(), W_PLUS, loss(lambda_style=1.0)).begin(wanted)


def test_rows_that_may_not_move_do_not() -> None:
    stages = {"a": replace(W_PLUS["w_plus"], rows=[1, 4])}
    start = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1))
    found = embed(generator(), targets(), stages, loss(), latent=start)
    moved = (found.w_plus != start).any(2)
    assert moved[:, [1, 4]].all()
    assert not moved[:, [0, 2, 3, 5]].any()
    for wrong in ([6], [-1]):
        with pytest.raises(UserError, match="rows from 0 to 5"):
            Search(generator(), {"a": replace(W_PLUS["w_plus"], rows=wrong)}, loss())


def test_prior_and_anchor_hold_latents_back() -> None:
    far = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1))
    stages = {"a": Stage(["w_plus"], 40, rate=0.05)}
    free = embed(generator(), targets(), stages, loss(), latent=far)
    prior = embed(generator(), targets(), stages, loss(lambda_prior=10.0), latent=far)
    assert (prior.distance < 0.7 * free.distance).all()
    found = statistics(generator())
    distance = (prior.w_plus - found.mean).square().sum(2) / found.std**2
    close(prior.terms["prior"], distance.mean(1))
    close(prior.distance, distance.sqrt().mean(1))
    anchored = embed(generator(), targets(), stages, loss(lambda_anchor=10.0), latent=far)
    moved, free_to_move = ((each.w_plus - far).norm(dim=2).mean(1) for each in (anchored, free))
    assert (moved < 0.7 * free_to_move).all()
    elsewhere = torch.zeros(1, 6, 8)
    pulled = embed(generator(), targets(anchor=elsewhere), stages, loss(lambda_anchor=10.0), latent=far)
    assert (pulled.w_plus.norm(dim=(1, 2)) < 0.7 * free.w_plus.norm(dim=(1, 2))).all()


# --------------------------------------------------------------------------------------------- best and stops


def test_the_best_is_kept_and_judged_at_the_end_too() -> None:
    wild = {"a": Stage(["w_plus"], 12, rate=0.8)}
    seen: list[Tensor] = []
    mine = Search(generator(), wild, loss())
    mine.begin(targets())
    while not mine.done:
        with torch.no_grad():
            seen.append(torch.stack(list(mine.terms().values())).sum(0))
        last = mine.latent.detach().clone()
        mine.step()
    found = mine.embedding()
    totals = torch.stack(seen)
    assert (found.total <= totals.amin(0) * (1 + 1e-5)).all()
    assert (found.total < totals[-1]).any()
    assert not torch.equal(found.w_plus, last)
    steady = {"a": Stage(["w_plus"], 12, rate=1e-3)}  # where the last step is the best
    mine = Search(generator(), steady, loss())
    mine.begin(targets())
    for _ in range(11):
        mine.step()
    before = mine.embedding().total
    mine.step()
    assert (mine.embedding().total < before).all()


@pytest.mark.parametrize("keep", ["best", "last"])
def test_an_image_that_has_stopped_no_longer_changes(keep: Any) -> None:
    """One image is its own start: it stops at once, and the others go on as if it were not there."""
    network = generator()
    mean = statistics(network).mean[:, None].expand(-1, network.num_ws, -1)
    real = images().clone()
    real[1:2] = network.synthesis(mean).detach()
    wanted = Targets(real, names())
    stages = {"a": Stage(["w_plus"], 24, rate=0.05, stop_at={"mse": 1e-6}, keep=keep)}
    mine = Search(generator(), stages, loss())
    mine.begin(wanted)
    for _ in range(5):
        mine.step()
    latent, _ = mine.now()
    close(latent[1], mean[0], 0)
    found = run(mine, wanted)
    assert found.steps.tolist() == [24, 0, 24]
    close(found.w_plus[1], mean[0], 0)
    for index in (0, 2):
        alone = embed(generator(), part(wanted, index), stages, loss())
        close(found.w_plus[index], alone.w_plus[0])


def test_patience_stops_each_image_by_itself_and_the_batch_shrinks() -> None:
    network = generator()
    mean = statistics(network).mean[:, None].expand(-1, network.num_ws, -1)
    real = torch.cat([network.synthesis(mean).detach(), network.synthesis(mean + 1e-3).detach(), images(1)])
    wanted = Targets(real, names())
    stage = Stage(["w_plus", "noise"], 80, rate=0.02, patience=5, min_gain=0.02)
    mine = Search(generator(), {"a": stage}, loss(), Start())
    mine.begin(wanted)
    sizes = set()
    while not mine.done:
        mine.step()
        sizes.add(len(mine.present))
    found = mine.embedding()
    assert 1 in sizes
    assert found.steps[0] < found.steps[2]
    assert found.steps[2] > 20
    for index in range(3):
        alone = embed(generator(), part(wanted, index), {"a": stage}, loss())
        assert alone.steps[0] == found.steps[index]
        close(found.w_plus[index], alone.w_plus[0])
        assert found.noise is not None
        assert alone.noise is not None
        close(found.noise[-1][index], alone.noise[-1][0])


def test_tuning_stops_where_it_is_told_and_gives_the_weights_back() -> None:
    stages = {"tune": Stage(["generator"], 10, rate=1e-2, keep="last", stop_at={"mse": 1e9})}
    mine = Search(generator(), stages, loss())
    found = run(mine, targets())
    assert found.steps.tolist() == [0, 0, 0]
    assert found.tuned is not None
    original = dict(generator().named_parameters())
    for weights in found.tuned:
        assert all(torch.equal(value, original[name]) for name, value in weights.items())
    stages = {"tune": replace(stages["tune"], stop_at={})}
    tuned = embed(generator(), targets(), stages, loss())
    assert (tuned.total < found.total).all()
    assert tuned.tuned is not None
    assert not torch.equal(
        tuned.tuned[0]["synthesis.b16.conv1.weight"], original["synthesis.b16.conv1.weight"]
    )
    assert mine.steps_per_batch(3) == 30


# ------------------------------------------------------------------------------------------------------ state


@pytest.mark.parametrize("name", PRESETS)
def test_a_search_goes_on_from_its_state_bit_for_bit(name: str) -> None:
    whole = run(search(name), targets(2))
    total = search(name).steps_per_batch(2)
    for stop in range(1, total, 3 if total < 10 else 5):
        mine = search(name)
        mine.begin(targets(2))
        for _ in range(stop):
            mine.step()
        state = copy.deepcopy(mine.state_dict())
        torch.manual_seed(stop)
        other = search(name)
        other.attach(targets(2))
        other.load_state_dict(state)
        while not other.done:
            other.step()
        found = other.embedding()
        assert torch.equal(found.w_plus, whole.w_plus), stop
        assert torch.equal(found.image, whole.image), stop
        assert torch.equal(found.steps, whole.steps), stop
        assert found.trace == whole.trace, stop


def test_a_state_belongs_to_its_images() -> None:
    mine = Search(generator(), W_PLUS, loss())
    mine.begin(targets(2))
    state = mine.state_dict()
    other = Search(generator(), W_PLUS, loss())
    other.attach(Targets(images(2), ["one", "two"]))
    with pytest.raises(UserError, match="face 0, face 1; the data now has one, two"):
        other.load_state_dict(state)


def test_a_shrunken_batch_goes_on_from_its_state() -> None:
    network = generator()
    mean = statistics(network).mean[:, None].expand(-1, network.num_ws, -1)
    wanted = Targets(torch.cat([network.synthesis(mean).detach(), images(1)]), names(2))
    stages = {"a": Stage(["w_plus"], 30, rate=0.05, stop_at={"mse": 1e-6})}
    whole = embed(generator(), wanted, stages, loss())
    mine = Search(generator(), stages, loss())
    mine.begin(wanted)
    for _ in range(17):
        mine.step()
    assert mine.present.tolist() == [1]
    other = Search(generator(), stages, loss())
    other.attach(wanted)
    other.load_state_dict(mine.state_dict())
    while not other.done:
        other.step()
    assert torch.equal(other.embedding().w_plus, whole.w_plus)


# ------------------------------------------------------------------------------------------------------ slips


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"real": torch.zeros(2, 1, 16, 16)}, "face 0: shape .* draws RGB images of 16x16 px"),
        ({"real": torch.zeros(2, 3, 16, 12)}, "face 0: 12x16 px .* crop and resize"),
        ({"real": torch.full((2, 3, 16, 16), torch.nan)}, "face 0: its real holds NaN"),
        ({"mask": torch.ones(1, 1, 8, 8)}, "mask has shape .* the images take"),
        ({"mask": torch.zeros(2, 1, 16, 16)}, "face 0: its mask is empty"),
        ({"mask": torch.full((1, 1, 16, 16), 2.0)}, "mask: values from 2 to 2; give 0 to 1"),
        ({"mask": torch.ones(3, 1, 16, 16)}, "mask: 3 given for 2 images"),
        ({"outside": torch.zeros(2, 3, 8, 8)}, "outside: 8x8 px"),
        ({"label": torch.ones(2, 4)}, "label: this generator takes none"),
        ({"anchor": torch.ones(2, 4, 8)}, "anchor has shape"),
        ({"names": ["one"]}, "1 names for 2 images"),
    ],
)
def test_targets_that_do_not_fit_are_refused_in_a_line(more: dict[str, Any], message: str) -> None:
    wanted = Targets(**({"real": images(2), "names": names(2)} | more))
    with pytest.raises(UserError, match=message) as slip:
        Search(generator(), W_PLUS, loss()).begin(wanted)
    assert len(str(slip.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moves": []}, r"moves=\[\]: give one or more of"),
        ({"moves": ["w", "w_plus"]}, "one of z, w and w_plus"),
        ({"moves": ["generator", "noise"], "keep": "last"}, "the generator alone"),
        ({"moves": ["generator"]}, "keep=best"),
        ({"moves": ["w"], "steps": 0}, "steps=0"),
        ({"moves": ["w"], "rate": 0.0}, "rate=0.0"),
        ({"moves": ["w"], "ramp_up": 1.5}, "ramp_up=1.5"),
        ({"moves": ["noise"], "w_noise": 0.1}, "the latent stands still"),
        ({"moves": ["w"], "weights": {"lpips": 1.0}}, "weights.lpips: the terms are"),
        ({"moves": ["w"], "patience": 0}, "patience=0"),
        ({"moves": ["w_plus"], "rows": []}, r"rows=\[\]: nothing would move"),
        ({"moves": ["w_plus"], "rows": "0-3"}, "rows=0-3: give a list of whole numbers"),
        ({"moves": ["w"], "rate": math.nan}, "rate=nan: give a positive number"),
        ({"moves": ["w"], "w_noise": math.inf}, "w_noise=inf"),
        ({"moves": ["w"], "weights": {"mse": math.nan}}, "weights.mse=nan: give a finite number"),
        ({"moves": ["w"], "stop_at": {"mse": math.nan}}, "stop_at.mse=nan: give a finite number"),
    ],
)
def test_impossible_stages_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Stage(**({"steps": 5} | options))


def test_stages_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(UserError, match="there is none"):
        Search(generator(), {"a": None}, loss())
    tune = Stage(["generator"], 1, keep="last")
    for behind in (tune, Stage(["noise"], 1), Stage(["w_plus"], 1)):
        with pytest.raises(UserError, match=r"^method\.stages\.b: comes behind a, which tunes the generator"):
            Search(generator(), {"w": Stage(["w"], 1), "a": tune, "b": behind}, loss())
    with pytest.raises(UserError, match="w is smaller than w_plus"):
        Search(generator(), {"a": Stage(["w_plus"], 1), "b": Stage(["w"], 1)}, loss())
    with pytest.raises(UserError, match="no term of the objective"):
        Search(
            generator(),
            {"a": Stage(["noise"], 1, weights={"perceptual": 0, "mse": 0})},
            loss(lambda_mse_outside=0),
        )
    with pytest.raises(UserError, match="z has no mean latent"):
        Search(generator(), {"a": Stage(["z"], 1)}, loss())
    for weight in (-1, math.nan, math.inf):
        with pytest.raises(UserError, match=rf"loss\.lambda_mse={weight}: a weight is a finite"):
            loss(lambda_mse=weight)


class Silent(StyleGAN2Generator):
    """A generator without noise inputs."""

    def _noise_buffers(self) -> list[Tensor]:
        return []


def test_without_noise_maps_noise_stages_are_left_out_and_said_so() -> None:
    network = Silent(16, 3, 8, 8, mapping_layers=2, channel_base=128, channel_max=8)
    stages = {**W_PLUS, "noise": Stage(["noise"], 3)}
    found = embed(network, targets(1), stages, loss())
    assert found.notes == ["stage noise was left out: this generator has no noise maps"]
    assert found.noise is None
    with pytest.raises(UserError, match="this generator has no noise maps; leave noise out"):
        embed(network, targets(1), {"a": Stage(["w", "noise"], 1)}, loss())


def test_a_substitute_is_told_and_its_threshold_left_out() -> None:
    parts = preset("pti")
    mine = Search(generator(), **parts)
    notes = run(mine, targets(1)).notes
    assert any("substitute for lpips_vgg" in note for note in notes)
    assert any("stop_at.perceptual" in note for note in notes)
    assert mine.stages["tune"].stop_at == {}
    assert isinstance(parts["loss"], InversionLoss)
    # Another threshold would stop an image long before the distance does that it goes with.
    stage = Stage(["w"], 3, stop_at={"perceptual": 0.06, "mse": 1e9})
    for patience, takes in ((None, "takes all its steps"), (5, "stops by patience alone")):
        mine = Search(generator(), {"a": replace(stage, patience=patience)}, parts["loss"])
        assert run(mine, targets(1)).steps.tolist() == [3]
        assert mine.notes == [f"stage a {takes}: stop_at.perceptual is meant for a learned distance"]


def test_without_a_network_its_terms_are_left_out() -> None:
    pixels = InversionLoss(None)
    parts = preset("pti")
    mine = Search(generator(), **{**parts, "loss": pixels})
    assert mine.stages["tune"].stop_at == {}
    assert any("stop_at.perceptual" in note for note in mine.notes)
    for term in ("perceptual", "style"):
        stage = Stage(["w"], 2, weights={term: 1.0})
        one, other = (
            embed(generator(), targets(1), {"a": each}, pixels)
            for each in (stage, replace(stage, weights={}))
        )
        assert torch.equal(one.w_plus, other.w_plus)


def test_a_stage_stops_by_what_it_weighs_alone() -> None:
    def stopping(*terms: str, **weights: float) -> dict[str, Stage]:
        return {"a": Stage(["w_plus"], 3, weights=weights, stop_at=dict.fromkeys(terms, 100.0))}

    found = embed(generator(), targets(1), stopping("perceptual", "mse", "prior", prior=1.0), loss())
    assert found.steps.tolist() == [0]
    for stages in (stopping("mse", "style"), stopping("style"), stopping("mse", "perceptual", perceptual=0)):
        wrong = "perceptual" if "perceptual" in stages["a"].stop_at else "style"
        slip = rf"^method\.stages\.a\.stop_at\.{wrong}: a stage stops by what it weighs, and this one weighs "
        with pytest.raises(UserError, match=slip):
            Search(generator(), stages, loss())
    for term in ("style", "mse_outside"):
        mine = Search(generator(), stopping("mse", term, style=1.0), loss())
        with pytest.raises(UserError, match=rf"stop_at\.{term}: the images come without one to compare with"):
            mine.begin(targets(1))


def test_a_conditional_generator_embeds_by_label() -> None:
    label = torch.eye(2)[[0, 1, 1]]
    for start, moves in ((Start("best", candidates=3), "z"), (Start("best", candidates=3), "w")):
        stages = {"a": Stage([moves], 3)}
        batch = embed(generator(2), targets(label=label), stages, loss(), start)
        one = Targets(images()[1:2], names()[1:2], label=label[1:2])
        close(batch.w_plus[1], embed(generator(2), one, stages, loss(), start).w_plus[0])
