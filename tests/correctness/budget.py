"""Error budgets relative to what plain torch loses in the same dtype; nowhere an absolute tolerance."""

import torch
from torch import Tensor

from ssd_kernels.reference import recurrent
from tests.correctness.problems import alone
from tests.precision import upcast

ULPS = 4
ENOUGH_FOR_AN_AVERAGE = 1000


def truth(inputs: dict, **options: object) -> tuple[Tensor, Tensor]:
    """The y and the final state of the fp64 recurrence on the given values."""
    return recurrent(**upcast(inputs), **options, return_final_state=True)


def plain_torch(inputs: dict, *, carry: str = "all") -> tuple[Tensor, Tensor]:
    """Torch's own y and final state in fp32 on the given dtype, of two plain forms the one with the larger error.

    Token by token, sums are short and added pairwise; as products of matrices they are long and added in order, as on
    tensor cores. The scans are made of such products.

    In fp64 the products must give the recurrence: or a fault of the definition would be taken for an error of torch's,
    and allowed.
    """
    if "cu_seqlens" in inputs:
        outputs, states = zip(*(plain_torch(each, carry=carry) for each in alone(inputs)), strict=True)
        return torch.cat(outputs, dim=1), torch.cat(states)
    if inputs["x"].shape[1] == 0:
        return _token_by_token(inputs, carry)
    forms = [_token_by_token(inputs, carry), _as_products(inputs, carry, torch.float32)]
    exact = _as_products(inputs, carry, torch.float64)
    for products, recurrence in zip(exact, truth(inputs, carry=carry), strict=True):
        assert_same_computation(products, recurrence, inputs)
    y, state = (
        max((form[i] for form in forms), key=lambda result, i=i: float(_rms(result.double() - exact[i])))
        for i in range(2)
    )
    return y.to(inputs["x"].dtype), state


def _token_by_token(inputs: dict, carry: str) -> tuple[Tensor, Tensor]:
    x, B, C = _by_head(inputs, torch.float32)
    dt = _plain_step(inputs, torch.float32)
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
    return _with_skip(y, x, inputs), state


def _as_products(inputs: dict, carry: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, B, C = _by_head(inputs, dtype)
    dt = _plain_step(inputs, dtype)
    t = torch.arange(x.shape[1], device=x.device)
    chunk = t // inputs["chunk_size"] if carry == "none" else torch.zeros_like(t)
    a = (dt.double() * inputs["A"].double()).cumsum(1).transpose(1, 2)  # (b, h, t)
    seen = (t[:, None] >= t) & (chunk[:, None] == chunk)
    decay = (a[..., :, None] - a[..., None, :]).masked_fill(~seen, -torch.inf).exp().to(dtype)  # (b, h, t, t)
    weights = torch.einsum("bihn,bjhn->bhij", C, B) * decay * dt.transpose(1, 2)[:, :, None]
    y = torch.einsum("bhij,bjhp->bihp", weights, x)
    state = torch.einsum("bhj,bjhp,bjhn->bhpn", decay[..., -1, :] * dt.transpose(1, 2), x, B)
    if inputs["initial_state"] is not None:
        first = inputs["initial_state"].to(dtype)
        entering = torch.einsum("bihn,bhpn->bihp", C, first) * a.exp().to(dtype).transpose(1, 2)[..., None]
        y = y + entering * (chunk == 0)[:, None, None]
        state = state + first * a[..., -1:, None].exp().to(dtype) * (chunk[-1] == 0)
    return _with_skip(y, x, inputs), state


def _by_head(inputs: dict, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x, B, C = (inputs[name].to(dtype) for name in ("x", "B", "C"))
    heads_per_group = x.shape[2] // B.shape[2]
    return x, B.repeat_interleave(heads_per_group, dim=2), C.repeat_interleave(heads_per_group, dim=2)


def _plain_step(inputs: dict, dtype: torch.dtype) -> Tensor:
    dt = inputs["dt"].to(dtype)
    if inputs["dt_bias"] is not None:
        dt = dt + inputs["dt_bias"].to(dtype)
    if inputs["dt_softplus"]:
        dt = torch.nn.functional.softplus(dt)
    return dt.clamp(*inputs["dt_limit"])


def _with_skip(y: Tensor, x: Tensor, inputs: dict) -> Tensor:
    return y if inputs["D"] is None else y + inputs["D"].reshape(x.shape[2], -1) * x


def assert_within_budget(
    actual: Tensor, exact: Tensor, by_torch: Tensor, *, what: str = "y", operands: torch.dtype | None = None
) -> None:
    """At most twice torch's own error and a few ulps: of the largest output, and again in root mean square.

    In half precision a result's own rounding dominates, so the root mean square allows one rounding (ulp / √12) more
    than twice torch's; in fp32 the order of the sums does, and it allows a few.

    `operands`: what the factors of a sum of products are rounded to, where torch's result was rounded to that instead.
    A result that is one product has the rounding of its factor, which may be all of half an ulp, whatever that of the
    same result was: torch's largest error says how near to a half its roundings came, and not how near others' may.
    """
    assert torch.isfinite(actual).all(), f"{what} is not finite everywhere"
    if exact.numel() == 0:
        return
    ulp = torch.finfo(actual.dtype).eps
    error, own = (actual.double() - exact).abs(), (by_torch.double() - exact).abs()
    largest = exact.abs().max()
    rounding = 2 * own.max()
    if operands is not None:
        rounding = max(rounding, torch.finfo(operands).eps / 2 * largest)
    allowed = rounding + ULPS * ulp * largest
    assert error.max() <= allowed, f"{what}: largest error {error.max():.3e}, allowed {allowed:.3e} of {largest:.3e}"
    if exact.numel() < ENOUGH_FOR_AN_AVERAGE:
        return
    roundings = 1 if actual.dtype.itemsize == 2 else ULPS
    allowed = 2 * _rms(own) + roundings * ulp / 12**0.5 * _rms(exact)
    assert _rms(error) <= allowed, f"{what}: rms error {_rms(error):.3e}, allowed {allowed:.3e} of {_rms(exact):.3e}"


def assert_same_computation(actual: Tensor, expected: Tensor, inputs: dict) -> None:
    """Two orders of one fp64 computation: equal up to its roundings, those of a sum of that many nats included."""
    assert actual.dtype == expected.dtype == torch.float64
    if expected.numel() == 0:
        return
    nats = (_plain_step(inputs, torch.float64) * inputs["A"].abs()).sum(1).max()
    bound = (100 + nats) * torch.finfo(torch.float64).eps * expected.abs().max()
    difference = (actual - expected).abs().max()
    assert difference <= bound, f"difference {difference:.3e}, allowed {bound:.3e}"


def _rms(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()
