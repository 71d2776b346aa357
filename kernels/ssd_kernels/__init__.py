"""Mamba-2 operators: the SSD scan as a definition in fp64, in torch, and in portable Triton.

Start from :func:`ssd`, which picks the implementation that suits the tensors' device, or name one with
:func:`get_ssd`.
"""

from ssd_kernels.interface import SSD
from ssd_kernels.registry import get_ssd, names, ssd

__all__ = ["SSD", "get_ssd", "names", "ssd"]
