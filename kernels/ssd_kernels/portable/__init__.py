"""The SSD scan in portable Triton: five short kernels, states in memory, any shape, exact for any decay."""

from ssd_kernels.portable.operator import ssd

__all__ = ["ssd"]
