"""A mixer's decode step in Triton: two launches, the convolution's and the state space's."""

from ssd_kernels.mixer import compose
from ssd_kernels.portable.causal_conv1d_step import causal_conv1d_step
from ssd_kernels.portable.ssd_step import ssd_step

mixer_step = compose(causal_conv1d_step, ssd_step)
