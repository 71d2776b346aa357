"""The SSD implementations that the tests run, and how one of them is held to its budget."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ssd_kernels import get_ssd
from ssd_kernels.checks import FLOATING
from tests.correctness.budget import assert_same_computation, assert_within_budget, plain_torch, truth
from tests.correctness.problems import HOPPER, TRITON_DTYPES, Problem, in_each_dtype

CARRIES = ["all", "none"]
# Elsewhere "triton" is "portable"; "hopper" has tests of its own, of the sizes that it takes.
PORTABLE = ["portable"] if HOPPER else []
implementations = in_each_dtype(chunked=FLOATING, **dict.fromkeys(["triton", *PORTABLE], TRITON_DTYPES))
in_fp32 = pytest.mark.parametrize("name", ["chunked", "triton", *PORTABLE])
needs_hopper = pytest.mark.skipif(not HOPPER, reason="Gluon is not interpreted: needs a GPU of compute capability 9.0")
carries = pytest.mark.parametrize("carry", CARRIES)


def check(name: str, problem: Problem, dtype: torch.dtype, carry: str = "all") -> None:
    """Run one implementation on one problem and hold it to the budget."""
    check_inputs_within_budget(name, problem.inputs(dtype), carry)


def check_inputs_within_budget(name: str, inputs: dict[str, Any], carry: str = "all") -> None:
    """As `check`, of given inputs."""
    dtype = inputs["x"].dtype
    y, state = get_ssd(name)(**inputs, carry=carry, return_final_state=True)
    exact_y, exact_state = truth(inputs, carry=carry)
    assert y.dtype == dtype
    assert y.shape == exact_y.shape
    assert state.shape == exact_state.shape
    if dtype == torch.float64:
        assert_same_computation(y, exact_y, inputs)
        return
    own_y, own_state = plain_torch(inputs, carry=carry)
    assert state.dtype == torch.float32
    assert_within_budget(y, exact_y, own_y)
    assert_within_budget(state, exact_state, own_state_in(dtype, own_state), what="final_state", operands=dtype)


def own_state_in(dtype: torch.dtype, state: Tensor) -> Tensor:
    """Torch keeps fp32 inside; a kernel that feeds tensor cores rounds once on the way into the state."""
    return state.to(dtype).float()
