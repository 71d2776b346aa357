"""Random weights for a fresh model, written in place from one generator.

Mamba-2's own initialisation (Dao and Gu, arXiv:2405.21060): decay rates 1 to 16, steps log-uniform in [1e-3, 1e-1].
Everything else as transformers does it: normal projections, unit norms.
"""

import math

import torch
from torch import Tensor, nn

from bamba.config import BambaConfig

_DECAY_RANGE = (1.0, 16.0)  # of -A
_STEP_RANGE = (1e-3, 1e-1)  # of softplus(dt_bias)


@torch.no_grad()
def init_weights(model: nn.Module, config: BambaConfig, seed: int) -> None:
    """Fill every parameter of `model`; the same seed, device and dtype give the same weights.

    Args:
        model: a :class:`bamba.Bamba` whose parameters are allocated; no second copy of any weight is made.
        config: its configuration.
        seed: of the generator that all weights are drawn from.

    Raises:
        RuntimeError: the model is on the meta device.
    """
    device = next(model.parameters()).device
    if device.type == "meta":
        raise RuntimeError("model: weights on the meta device have no memory to fill; build it on a real device")
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        kind = name.rpartition(".")[2] if "conv1d" not in name else "conv1d"
        if kind == "A_log":
            parameter.uniform_(*_DECAY_RANGE, generator=generator).log_()
        elif kind == "dt_bias":
            low, high = (math.log(limit) for limit in _STEP_RANGE)
            parameter.copy_(_inverse_softplus(parameter.uniform_(low, high, generator=generator).exp_()))
        elif kind == "D" or "norm" in name:
            parameter.fill_(1.0)
        elif kind == "conv1d":
            bound = config.ssm_d_conv**-0.5
            parameter.uniform_(-bound, bound, generator=generator)
        elif kind == "bias":
            parameter.zero_()
        else:
            parameter.normal_(std=config.initializer_range, generator=generator)


def _inverse_softplus(x: Tensor) -> Tensor:
    """The argument at which softplus is x > 0."""
    return x + torch.log(-torch.expm1(-x))
