"""What the Hopper scan computes, in torch: its chunks, segments, scales and roundings, but not its Gluon.

It takes what the preparation kernels made, so that where they run in Triton's interpreter, all but the mechanics of the
last kernel is tested on a CPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from ssd_kernels.hopper import prepare as preparation
from ssd_kernels.hopper.configs import CHUNK, GROUP, NEGLIGIBLE, STEEP_UNIT, Cut
from ssd_kernels.hopper.decays import BETWEEN, CLOSING, OPENING, STEEP
from ssd_kernels.hopper.prepare import Prepared
from ssd_kernels.hopper.segment_states import Pieces, segment_states
from ssd_kernels.hopper.slots import count_slots
from ssd_kernels.interface import Sizes


@dataclass
class Run:
    """One call: what the kernels were given, and how it is cut."""

    inputs: dict[str, Any]
    sizes: Sizes
    nslots: int
    period: int | None
    cut: Cut
    prepared: Prepared
    pieces: Pieces | None

    def rows(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Of each sequence: the batch row, its first token, one past its last, its first slot, one past its last."""
        bounds = self.inputs.get("cu_seqlens")
        for row in range(self.sizes.state_shape[0]):
            batch, start, stop, first = row, 0, self.sizes.seqlen, 0
            if bounds is not None:
                batch, (start, stop) = 0, bounds[row : row + 2].tolist()
                first = start // CHUNK + row
            yield batch, start, stop, first, first - (start - stop) // CHUNK


def hopper_model(inputs: dict[str, Any], *, carry: str = "all", cut: Cut | None = None) -> tuple[Tensor, Tensor, Run]:
    """The y and the final state of an SSD call, and what they were made of. Computes with fp32 values of bf16."""
    cut = cut or Cut()
    inputs = {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    x, B, C, bounds = (inputs.get(name) for name in ("x", "B", "C", "cu_seqlens"))
    sizes = Sizes.of(x, B, bounds)
    nslots = count_slots(sizes.seqlen, sizes.nseqs, CHUNK)
    with mock.patch.object(preparation, "launch", _interpreted):
        prepared = preparation.prepare(
            inputs["dt"], inputs["A"], B, C, inputs["dt_bias"], inputs["dt_softplus"], inputs["dt_limit"], bounds,
            sizes, nslots,
        )  # fmt: skip
    period = inputs["chunk_size"] // CHUNK if carry == "none" else None
    pieces = None
    if cut.segments > 1 and period is None:
        pieces = segment_states(x, B, prepared, bounds, sizes, nslots, cut)
    run = Run(inputs, sizes, nslots, period, cut, prepared, pieces)
    y, final_state = torch.full_like(x, torch.nan), x.new_full(sizes.state_shape, torch.nan)
    for row, bounds_of_row in enumerate(run.rows()):
        for segment in range(cut.segments):
            _segment(run, row, segment, *bounds_of_row, y, final_state)
    return y, final_state, run


def _interpreted(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch a kernel of Gluon's as one of Triton's, whose interpreter knows neither layouts nor early starts."""
    triton.jit(kernel.fn)[grid](*args, **{**constants, "WARPS": 0, "EARLY_START": False})


def _segment(
    run: Run, row: int, segment: int, batch: int, start: int, stop: int, first: int, last: int,
    y: Tensor, final_state: Tensor,
) -> None:  # fmt: skip
    """Fill y of one segment, and the final state if it ends the sequence."""
    size = run.cut.pieces_of_segment
    begin, _ = piece(run, segment * size, first, last)
    _, end = piece(run, (segment + 1) * size - 1, first, last)
    heads_per_group = run.sizes.nheads // run.sizes.ngroups
    x, B, C, D = (run.inputs[name] for name in ("x", "B", "C", "D"))
    S, closing = _entering_state(run, row, segment), x.new_zeros(run.sizes.nheads)
    for slot in range(begin, end):
        tokens = slice(start + (slot - first) * CHUNK, min(start + (slot - first + 1) * CHUNK, stop))
        if run.period is not None and slot > first and (slot - first) % run.period == 0:
            S = torch.zeros_like(S)
        padded = [_padded(tensor[batch, tokens]) for tensor in (x, B, C)]
        x_chunk, B_chunk, C_chunk = padded[0], *(each.repeat_interleave(heads_per_group, 1) for each in padded[1:])
        CB = run.prepared.CB[batch, slot].repeat_interleave(heads_per_group, 0).bfloat16().float()
        factors = run.prepared.factors[batch, :, slot]
        exponents = run.prepared.exponents[batch, :, slot]
        steep = exponents[:, STEEP.value] != 0
        S = torch.where(steep[:, None, None], _scaled(S, closing), S)
        out_steep = _steep(S, x_chunk, C_chunk, CB, factors, run.prepared.steps[batch, :, slot])
        scale = torch.where(steep, 0, closing) + exponents[:, OPENING.value]
        S = _scaled(S, scale)
        high, low = factors[:, : 2 * CHUNK].float().unflatten(1, (2, CHUNK)).unbind(1)
        u = factors[:, 2 * CHUNK :].contiguous().view(torch.float32)
        xw = _rounded(x_chunk * high.T[..., None] + _rounded(x_chunk * low.T[..., None]))  # (Q, H, P)
        out = torch.einsum("hpn,ihn->ihp", _rounded(S), C_chunk)
        out, S, xw = _between_halves(out, S, xw, CB, exponents[:, BETWEEN.value])
        out = out + torch.einsum("hij,jhp->ihp", CB, xw)
        out = torch.where(steep[:, None], out_steep, out * torch.where(steep[:, None], 0, u).T[..., None])
        if D is not None:
            out = out + D.reshape(run.sizes.nheads, -1) * x_chunk
        y[batch, tokens] = out[: tokens.stop - tokens.start]
        S = S + torch.einsum("jhp,jhn->hpn", xw, B_chunk)
        closing = exponents[:, CLOSING.value]
    if end == last and (begin < end or segment == 0):
        final_state[row] = _scaled(S, closing)


def _between_halves(out: Tensor, S: Tensor, xw: Tensor, CB: Tensor, between: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the first half adds to its own tokens, if the halves have a scale each; and all else in the second's."""
    half, halved = CHUNK // 2, (between != 0)[:, None]
    first = torch.einsum("hij,jhp->ihp", CB[:, :half, :half], xw[:half])
    step = torch.exp2(between * 0.5)[:, None]
    out = torch.cat([out[:half] + torch.where(halved, first, 0), out[half:] * step * step])
    xw = torch.cat([_rounded(_rounded(xw[:half] * step) * step), xw[half:]])
    return out, S * step[..., None] * step[..., None], xw


def _steep(S: Tensor, x: Tensor, C: Tensor, CB: Tensor, factors: Tensor, dt: Tensor) -> Tensor:
    a = factors[:, 2 * CHUNK :].contiguous().view(torch.int32)  # (H, Q)
    unit = STEEP_UNIT.value
    exponent = torch.where(torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril(), a[:, :, None] - a[:, None, :], 0)
    weights = _rounded(CB * torch.exp2(exponent.float() * unit) * dt[:, None, :])
    entering = torch.einsum("hpn,ihn->ihp", _rounded(S), C) * torch.exp2(a.float() * unit).T[..., None]
    return entering + torch.einsum("hij,jhp->ihp", weights, x)


def _entering_state(run: Run, row: int, segment: int) -> Tensor:
    S = torch.zeros(run.sizes.state_shape[1:])
    decay = torch.zeros(run.sizes.nheads)
    if run.pieces is not None:
        decays = run.pieces.decays[row].unflatten(-1, (run.sizes.nheads, -1))[..., 0]
        for k in reversed(range(segment * run.cut.pieces_of_segment)):
            near = (decay > -NEGLIGIBLE.value)[:, None, None]
            S = S + torch.where(near, torch.exp2(decay)[:, None, None] * run.pieces.states[row, k], 0)
            decay = torch.where(near[:, 0, 0], decay + decays[k], decay)
    initial = run.inputs["initial_state"]
    reached = (decay > -NEGLIGIBLE.value)[:, None, None] if run.period is None else torch.tensor(segment == 0)
    if initial is not None:
        S = S + torch.where(reached, torch.exp2(decay)[:, None, None] * initial[row], 0)
    return S


def piece(run: Run, index: int, first: int, last: int) -> tuple[int, int]:
    """The slots of one of the parts that a sequence is cut into."""
    step = GROUP if run.period is None else run.period
    origin = first if run.period is not None else first // GROUP * GROUP
    size = math.ceil(math.ceil((last - origin) / run.cut.pieces) / step) * step
    begin = min(max(origin + index * size, first), last)
    return begin, max(min(origin + (index + 1) * size, last), begin)


def _scaled(S: Tensor, exponent: Tensor) -> Tensor:
    part = exponent.clamp(-100, 100)
    return S * torch.exp2(part)[:, None, None] * torch.exp2(exponent - part)[:, None, None]


def _padded(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(CHUNK - tensor.shape[0], *tensor.shape[1:])])


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().float()
