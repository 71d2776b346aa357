"""The SSD scan in portable Triton: a walk over chunks, the state in registers; any shape, exact for any decay."""

from ssd_kernels.portable.operator import ssd

__all__ = ["ssd"]
