"""Error budgets relative to what plain torch loses in the same dtype; nowhere an absolute tolerance."""

import torch
from torch import Tensor

from ssd_kernels.interface import discretise
from ssd_kernels.reference import recurrent
from tests.correctness.problems import alone, upcast

ULPS = 4
ENOUGH_FOR_AN_AVERAGE = 1000


def truth(inputs: dict, **options: object) -> tuple[Tensor, Tensor]:
    """The y and the final state of the fp64 recurrence on the given values."""
    return recurrent(**upcast(inputs), **options, return_final_state=True)


def plain_torch(inputs: dict, *, carry: str = "all") -> tuple[Tensor, Tensor]:
    """The recurrence written down once more, token by token in fp32 on the given dtype: torch's own error."""
    if "cu_seqlens" in inputs:
        outputs, states = zip(*(plain_torch(each, carry=carry) for each in alone(inputs)), strict=True)
        return torch.cat(outputs, dim=1), torch.cat(states)
    x, B, C = (inputs[name].float() for name in ("x", "B", "C"))
    heads_per_group = x.shape[2] // B.shape[2]
    B, C = B.repeat_interleave(heads_per_group, dim=2), C.repeat_interleave(heads_per_group, dim=2)
    dt = inputs["dt"].float()
    if inputs["dt_bias"] is not None:
        dt = dt + inputs["dt_bias"]
    if inputs["dt_softplus"]:
        dt = torch.nn.functional.softplus(dt)
    dt = dt.clamp(*inputs["dt_limit"])
    state = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[-1])
    if inputs["initial_state"] is not None:
        state = inputs["initial_state"]
    y = torch.empty_like(x)
    for t in range(x.shape[1]):
        if carry == "none" and t and t % inputs["chunk_size"] == 0:
            state = torch.zeros_like(state)
        added = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        state = state * torch.exp(dt[:, t] * inputs["A"])[..., None, None] + added
        y[:, t] = (state * C[:, t, :, None]).sum(-1)
    if inputs["D"] is not None:
        y = y + inputs["D"].reshape(x.shape[2], -1) * x
    return y.to(inputs["x"].dtype), state


def assert_within_budget(actual: Tensor, exact: Tensor, by_torch: Tensor, *, what: str = "y") -> None:
    """At most twice torch's own error and a few ulps: of the largest output, and again in root mean square.

    In half precision a result's own rounding dominates, so the root mean square allows one rounding (ulp / √12) more
    than twice torch's; in fp32 the order of the sums does, and it allows a few.
    """
    assert torch.isfinite(actual).all(), f"{what} is not finite everywhere"
    if exact.numel() == 0:
        return
    ulp = torch.finfo(actual.dtype).eps
    error, own = (actual.double() - exact).abs(), (by_torch.double() - exact).abs()
    largest = exact.abs().max()
    allowed = 2 * own.max() + ULPS * ulp * largest
    assert error.max() <= allowed, f"{what}: largest error {error.max():.3e}, allowed {allowed:.3e} of {largest:.3e}"
    if exact.numel() < ENOUGH_FOR_AN_AVERAGE:
        return
    roundings = 1 if actual.dtype.itemsize == 2 else ULPS
    allowed = 2 * _rms(own) + roundings * ulp / 12**0.5 * _rms(exact)
    assert _rms(error) <= allowed, f"{what}: rms error {_rms(error):.3e}, allowed {allowed:.3e} of {_rms(exact):.3e}"


def assert_same_computation(actual: Tensor, expected: Tensor, inputs: dict) -> None:
    """Two orders of one fp64 computation: equal up to its roundings, those of a sum of that many nats included."""
    assert actual.dtype == expected.dtype == torch.float64
    dt = discretise(inputs["dt"], inputs["dt_bias"], inputs["dt_softplus"], inputs["dt_limit"], torch.float64)
    nats = (dt * inputs["A"].abs()).sum(1).max()
    bound = (100 + nats) * torch.finfo(torch.float64).eps * expected.abs().max()
    difference = (actual - expected).abs().max()
    assert difference <= bound, f"difference {difference:.3e}, allowed {bound:.3e}"


def _rms(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()
