"""Keep a network's output and let go of all that its gradients need, until they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(network: nn.Module, function: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``function(network, x)``, which runs a second time when its gradients are needed.

    In between nothing is kept but ``x``, the output and the network's buffers (Chen et al. 2016, section 3).
    The second run draws the same random numbers under the same autocast, starts from the buffers that the
    first one found (the singular vectors of spectral normalisation, say), and leaves no trace in them:
    running statistics see every batch once.

    Args:
        network: Its parameters must not change between the two runs.
        function: Maps the network and ``x`` to an output; all its random numbers are torch's.
        x: Images (N, C, H, W), or whatever ``function`` takes.
    """
    found = [
        (module, name, buffer.clone())
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]

    @contextmanager
    def as_it_was() -> Iterator[None]:
        current = [(module, name, getattr(module, name)) for module, name, _ in found]
        try:
            for module, name, buffer in found:
                setattr(module, name, buffer)
            yield
        finally:
            for module, name, buffer in current:
                setattr(module, name, buffer)

    return checkpoint(
        function, network, x, use_reentrant=False, context_fn=lambda: (nullcontext(), as_it_was())
    )
