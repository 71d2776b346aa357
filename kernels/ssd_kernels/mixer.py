"""A mixer's decode step as the causal convolution's step followed by the state space's."""

import math

from torch import Tensor

from ssd_kernels.conv_interface import CausalConv1dStep
from ssd_kernels.step_interface import MixerStep, SSDStep, check_mixer_step, mixer_parts


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
        # All of it before the first half changes the window: an error leaves both memories as they were.
        check_mixer_step(
            xBC, dt, z, window, state, weight, bias, A,
            activation=activation, D=D, dt_bias=dt_bias, dt_limit=dt_limit, slots=slots,
        )  # fmt: skip
        convolved = causal_conv1d_step(xBC, window, weight, bias, activation=activation, slots=slots)
        x, B, C = mixer_parts(convolved, state)
        y = ssd_step(
            state, x, dt, A, B, C, D=D, z=None if z is None else z.unflatten(-1, x.shape[1:]), dt_bias=dt_bias,
            dt_softplus=dt_softplus, dt_limit=dt_limit, slots=slots,
        )  # fmt: skip
        return y.flatten(-2)

    return mixer_step
