"""Initial weights of generators and discriminators."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from i2i_lightning.networks.layers import SPECTRAL_WARM_UP, SpectralConv2d
from i2i_lightning.types import UserError

Init = Literal["normal", "xavier", "kaiming", "orthogonal"]


def init_weights(module: nn.Module, kind: Init = "normal", gain: float = 0.02) -> None:
    """Draw the weights of all convolutions, linear layers and batch norms anew, from the global RNG.

    Convolutions and linear layers: weights by ``kind``, biases 0. Batch norms, whatever ``kind`` is: weights
    N(1, gain^2), biases 0. (The reference finds layers by class name and so leaves the weights of
    synchronised batch norms at 1; here they begin like the batch norms that they replace.) DCGAN's N(0,
    0.02^2) is the pix2pix and CycleGAN setting.

    Args:
        module: The network.
        kind: ``normal``: N(0, gain^2). ``xavier``: normal with variance gain^2 * 2 / (fan_in + fan_out).
            ``kaiming``: normal with variance 2 / fan_in, ``gain`` plays no part. ``orthogonal``: orthonormal
            rows or columns times gain.
        gain: Standard deviation or factor as above.

    Raises:
        UserError: If ``kind`` is none of these.
    """
    if kind not in ("normal", "xavier", "kaiming", "orthogonal"):
        raise UserError(f"init={kind}: choose one of normal, xavier, kaiming, orthogonal")
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            if kind == "normal":
                nn.init.normal_(layer.weight, 0.0, gain)
            elif kind == "xavier":
                nn.init.xavier_normal_(layer.weight, gain=gain)
            elif kind == "kaiming":
                nn.init.kaiming_normal_(layer.weight, a=0, mode="fan_in")
            else:
                nn.init.orthogonal_(layer.weight, gain=gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, _BatchNorm) and layer.affine:
            nn.init.normal_(layer.weight, 1.0, gain)
            nn.init.zeros_(layer.bias)
        if isinstance(layer, SpectralConv2d):
            layer.iterate(SPECTRAL_WARM_UP)  # its singular vectors belong to the weight it had before
