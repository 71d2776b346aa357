"""A mixer's decode step as the causal convolution's step followed by the state space's."""

import math
from typing import Any

from torch import Tensor

from ssd_kernels.conv_interface import CausalConv1dStep
from ssd_kernels.step_interface import MixerStep, SSDStep, check_ssd_step, mixer_parts


def compose(causal_conv1d_step: CausalConv1dStep, ssd_step: SSDStep) -> MixerStep:
    """The step of a whole mixer made of the steps of its two halves."""

    def mixer_step(
        xBC: Tensor,
        dt: Tensor,
        z: Tensor | None,
        window: Tensor,
        state: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        *,
        activation: str | None = "silu",
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        slots: Tensor | None = None,
    ) -> Tensor:
        """One token of a mixer; see :class:`ssd_kernels.step_interface.MixerStep`."""
        widths = mixer_parts(xBC, z, window, state)
        heads, d_state = state.shape[1:3], state.shape[3]
        gate = None if z is None else z.unflatten(-1, heads)
        options: dict[str, Any] = {"D": D, "z": gate, "dt_bias": dt_bias, "dt_limit": dt_limit, "slots": slots}

        def split(channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x, B, C = channels.split(widths, dim=-1)
            return x.unflatten(-1, heads), B.unflatten(-1, (-1, d_state)), C.unflatten(-1, (-1, d_state))

        x, B, C = split(xBC)
        # Before the first half changes the window: an error leaves both memories as they were.
        check_ssd_step(state, x, dt, A, B, C, **options)
        convolved = causal_conv1d_step(xBC, window, weight, bias, activation=activation, slots=slots)
        x, B, C = split(convolved)
        return ssd_step(state, x, dt, A, B, C, dt_softplus=dt_softplus, **options).flatten(-2)

    return mixer_step
