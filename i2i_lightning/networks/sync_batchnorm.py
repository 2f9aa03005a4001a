"""Batch norm over the batches of all processes, on CPUs as on GPUs."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics, forward and backward, are those of all processes' batches together.

    With processes of n_i values per channel each, N in all, the mean is ``sum(n_i mean_i) / N`` and the
    variance ``(sum(n_i var_i) + sum(n_i (mean_i - mean)^2)) / N`` (Chan et al. 1979), so batches may differ
    in size. Parameters and buffers are those of batch norm, under the same names.

    It talks to the other processes only where batch norm would update its running statistics. In evaluation
    mode, or where it does not track (``Method.testing``), processes may run it any number of times; alone, it
    is batch norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x (N, C, H, W)`` normalised, in its own dtype."""
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not (together and self.training and self.track_running_stats):
            return super().forward(x)
        self._check_input_dim(x)
        out, mean, var, count = cast(
            tuple[Tensor, Tensor, Tensor, Tensor], _Normalize.apply(x, self.weight, self.bias, self.eps)
        )
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            weight = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
            unbiased = var * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)
        return out


class _Normalize(torch.autograd.Function):
    """``y = (x - mean) / sqrt(var + eps) * weight + bias``, with mean and variance over all processes.

    One collective in the forward, one in the backward. Statistics and gradients are in float32 at least.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        local_var, local_mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        size = local_mean.new_full((1,), wide.numel() / wide.shape[1])
        mine = torch.cat([local_mean, local_var, size])
        all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(all_ranks, mine)
        channels = wide.shape[1]
        stacked = torch.stack(all_ranks)
        means, variances, sizes = stacked[:, :channels], stacked[:, channels:-1], stacked[:, -1:]
        count = sizes.sum()
        mean = (means * sizes).sum(0) / count
        var = ((variances + (means - mean).square()) * sizes).sum(0) / count
        inverse = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.mark_non_differentiable(mean, var, count)
        scale = inverse if weight is None else inverse * weight
        out = (wide - _wide(mean)) * _wide(scale)
        return (out if bias is None else out + _wide(bias)).to(x.dtype), mean, var, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        grad = grad.to(mean.dtype)
        normal = (x.to(mean.dtype) - _wide(mean)) * _wide(inverse)
        sums = torch.stack([grad.sum((0, 2, 3)), (grad * normal).sum((0, 2, 3))])
        to_bias, to_weight = sums.clone()  # of this process; who averages gradients averages these too
        to_x = None
        if ctx.needs_input_grad[0]:
            dist.all_reduce(sums)
            mean_grad, mean_along = sums / count
            to_x = grad - _wide(mean_grad) - normal * _wide(mean_along)
            to_x = to_x.mul_(_wide(inverse if weight is None else inverse * weight)).to(x.dtype)
        return (
            to_x,
            to_weight if ctx.needs_input_grad[1] else None,
            to_bias if ctx.needs_input_grad[2] else None,
            None,
        )


def _wide(per_channel: Tensor) -> Tensor:
    return per_channel[None, :, None, None]
