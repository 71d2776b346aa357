"""The SSD scan for Hopper, in Gluon: two launches, the state in registers, decays in factors.

Start from :mod:`ssd_kernels.hopper.prepare`, which has the mathematics, and :mod:`ssd_kernels.hopper.scan`.
"""

from ssd_kernels.hopper.operator import ssd

__all__ = ["ssd"]
