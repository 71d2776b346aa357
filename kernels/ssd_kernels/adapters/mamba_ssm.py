"""mamba-ssm's scan, `mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined`, with our signature.

Only its Triton modules are imported. The package itself asks for compiled CUDA extensions that the scan does not need.
"""

import importlib
import importlib.util
import math
import sys
from types import ModuleType

import torch
from torch import Tensor

from ssd_kernels.interface import check_inputs, state_dtype

RUNS = ("mamba_ssm.ops.triton.ssd_combined:_mamba_chunk_scan_combined_fwd",)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    carry: str = "all",
    return_final_state: bool = False,
    return_chunk_states: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """The scan by mamba-ssm; see :class:`ssd_kernels.interface.SSD`.

    Packed sequences become its index of sequences by token, whose chunks may span two sequences.

    Raises:
        NotImplementedError: fp64, a carry other than `"all"`, states at chunk ends, packed sequences that start from
            states.
    """
    check_inputs(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_limit=dt_limit,
        initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
    )  # fmt: skip
    if x.dtype == torch.float64:
        raise NotImplementedError("x: mamba-ssm has no scan in float64")
    if carry != "all":
        raise NotImplementedError(f"carry must be 'all' for mamba-ssm, got {carry!r}")
    if return_chunk_states:
        raise NotImplementedError("return_chunk_states: mamba-ssm does not return states at chunk ends")
    if cu_seqlens is not None and initial_state is not None:
        raise NotImplementedError("initial_state: mamba-ssm starts packed sequences from zero only")
    packed = cu_seqlens is not None
    result = _combined.mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D=D, dt_bias=dt_bias, initial_states=initial_state, dt_softplus=dt_softplus,
        dt_limit=dt_limit, seq_idx=None if cu_seqlens is None else _sequence_of_tokens(cu_seqlens, x.shape[1]),
        cu_seqlens=cu_seqlens, return_final_states=return_final_state and not packed,
        return_varlen_states=return_final_state and packed,
    )  # fmt: skip
    if not return_final_state:
        y: Tensor = result
        return y
    y, final_state = result
    return y, final_state.to(state_dtype(x))


def _sequence_of_tokens(cu_seqlens: Tensor, seqlen: int) -> Tensor:
    """The index of each token's sequence, (1, seqlen) int32."""
    sequences = torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device, dtype=torch.int32)
    return sequences.repeat_interleave(cu_seqlens.diff(), output_size=seqlen)[None]


def import_without_the_package(name: str, package: str) -> ModuleType:
    """Import a module without running the `__init__` of its top-level package, which is left as if never touched.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    if package in sys.modules:
        return importlib.import_module(name)
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}: install mamba-ssm (docs/peers.md)", name=package)
    sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[package]


_combined = import_without_the_package("mamba_ssm.ops.triton.ssd_combined", "mamba_ssm")
