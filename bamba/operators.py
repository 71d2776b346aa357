"""Which implementation of each operator a mixer runs: one choice, by the name of the scan and the device."""

from typing import TYPE_CHECKING, Any, NamedTuple

import ssd_kernels
from ssd_kernels import SSD, get_op
from ssd_kernels.attention_interface import AttentionStep
from ssd_kernels.conv_interface import CausalConv1d
from ssd_kernels.linear_interface import LinearStep
from ssd_kernels.mlp_interface import RMSNorm, SwiGLU
from ssd_kernels.norm import GatedRMSNorm
from ssd_kernels.registry import default_name
from ssd_kernels.step_interface import MixerStep

if TYPE_CHECKING:
    from bamba.parallel.ranks import Ranks

# The other operators that go with a scan of ours; with anyone else's go those of the device.
_FAMILIES = {"recurrent": "torch", "chunked": "torch", "triton": "triton"}


class Operators(NamedTuple):
    """The operators of a mixer, each with the contract of `ssd_kernels`; the fields have its names."""

    ssd: SSD
    causal_conv1d: CausalConv1d
    mixer_step: MixerStep
    gated_rms_norm: GatedRMSNorm
    linear_step: LinearStep | None  # these two for a few tokens; None where modules are as good, in torch
    attention_step: AttentionStep | None
    rms_norm: RMSNorm | None  # in the place of modules, like swiglu; None likewise
    swiglu: SwiGLU | None
    ranks: "Ranks | None" = None  # the processes that hold the other heads; None where this one holds all


def choose_operators(ssm: str, device_type: str) -> Operators:
    """The operators of a model whose SSD implementation is `ssm` (or "auto"), on a device.

    On "meta", where nothing can run, what depends on the device is left open: a model chooses again when it is moved.

    Raises:
        ValueError, RuntimeError, ModuleNotFoundError: as :func:`ssd_kernels.get_op`.
        NotImplementedError: there is no default for this kind of device.
    """

    def name_of(operator: str) -> str:
        name = ssm if operator == "ssd" else _FAMILIES.get(ssm, "auto")
        return default_name(device_type, operator) if name == "auto" and device_type != "meta" else name

    def choose(operator: str) -> Any:
        name = name_of(operator)
        return getattr(ssd_kernels, operator) if name == "auto" else get_op(operator, name)

    def in_place_of_modules(operator: str) -> Any:
        # In torch it would be the modules' own work under another name.
        return get_op(operator, "triton") if device_type != "meta" and name_of(operator) == "triton" else None

    return Operators(
        ssd=choose("ssd"),
        causal_conv1d=choose("causal_conv1d"),
        mixer_step=choose("mixer_step"),
        gated_rms_norm=choose("gated_rms_norm"),
        linear_step=in_place_of_modules("linear_step"),
        attention_step=in_place_of_modules("attention_step"),
        rms_norm=in_place_of_modules("rms_norm"),
        swiglu=in_place_of_modules("swiglu"),
    )
