"""The Hopper scan as tests call it: by a model of its last kernel anywhere, by itself on such a GPU."""

import pytest
import torch

from ssd_kernels import get_ssd
from ssd_kernels.hopper.configs import Cut
from tests.correctness.budget import assert_within_budget, plain_torch, truth
from tests.correctness.hopper_model import hopper_model
from tests.correctness.implementations import needs_hopper, own_state_in
from tests.correctness.problems import DEVICE


def modelled(inputs, carry="all", cut=None):
    """By the preparation kernels in Triton's interpreter, which has no bf16, and a model of the rest."""
    y, state, _ = hopper_model(inputs, carry=carry, cut=cut)
    return y.bfloat16(), state


def by_hopper(inputs, carry="all", cut=None, consumers=1):
    """By the kernels, cut as asked."""
    from ssd_kernels.hopper import configs, launcher
    from ssd_kernels.repeating import forget

    chosen = launcher.scan_config
    try:
        if cut is not None:
            forget()
            launcher.scan_config = lambda sizes, *_: configs.ScanConfig(
                consumers=consumers, stages=2 if sizes.d_state > configs.WIDTH else 5 - consumers, cut=cut
            )
        return get_ssd("hopper")(**inputs, carry=carry, return_final_state=True)
    finally:
        if cut is not None:
            forget()
        launcher.scan_config = chosen


def by_two_warpgroups(inputs, carry="all", cut=None):
    """As :func:`by_hopper`, two heads a program."""
    return by_hopper(inputs, carry, cut or Cut(), consumers=2)


on_cpu = pytest.mark.skipif(DEVICE == "cuda", reason="the model runs what Triton's interpreter makes")
both = pytest.mark.parametrize(
    "scan", [pytest.param(modelled, marks=on_cpu), pytest.param(by_hopper, marks=needs_hopper)]
)


def check(scan, inputs, carry="all", cut=None, by_head=False):
    """Hold y and the final state to their budgets; of each head alone, where the values of one may hide another's."""
    y, state = scan(inputs, carry=carry, cut=cut)
    exact_y, exact_state = truth(inputs, carry=carry)
    own_y, own_state = plain_torch(inputs, carry=carry)
    own_state = own_state_in(torch.bfloat16, own_state)
    for heads in range(y.shape[2]) if by_head else [slice(None)]:
        assert_within_budget(y[:, :, heads], exact_y[:, :, heads], own_y[:, :, heads])
        of_state = (each[:, heads] for each in (state, exact_state, own_state))
        assert_within_budget(*of_state, what="final_state")
