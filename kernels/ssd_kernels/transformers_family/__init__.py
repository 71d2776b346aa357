"""transformers' Mamba-2 family on the operators of this package, with no CUDA extension to build.

Start from :func:`ssd_kernels.transformers_family.patch.patch_transformers`; the functions that take the place of
transformers' own are in :mod:`ssd_kernels.transformers_family.functions`.
"""

from ssd_kernels.transformers_family.patch import FAMILIES, Patch, patch_transformers

__all__ = ["FAMILIES", "Patch", "patch_transformers"]
