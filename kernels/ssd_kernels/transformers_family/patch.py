"""Puts this package's operators in the place of those that transformers' modeling modules call, and takes them back.

A modeling module of the family defines its convolution, scan and decode step as functions of its own, each of which
chose its implementation (torch's, or mamba-ssm's) when the module was imported. The mixer finds them among the globals
of its module at every call: that is where they are replaced, so models built before and after run on the operators.
Written for transformers 5.17 to 5.23; whether a version fits is read off its functions, not off its number.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, Self

from ssd_kernels.transformers_family import functions
from ssd_kernels.transformers_family.functions import IMPLEMENTATIONS

# The mixer of each family's modeling module.
FAMILIES = {
    "mamba2": "Mamba2Mixer",
    "bamba": "BambaMixer",
    "granitemoehybrid": "GraniteMoeHybridMambaLayer",
    "zamba2": "Zamba2MambaMixer",
    "falcon_h1": "FalconH1Mixer",
    "nemotron_h": "NemotronHMamba2Mixer",
}

# What a mixer calls, and the arguments by which it must call it.
_REPLACED = {
    "causal_conv1d_fn": ("hidden_states", "weight", "bias", "activation"),
    "causal_conv1d_update": ("hidden_states", "conv_state", "weight", "bias", "activation"),
    "mamba2_chunk_scan": (
        "hidden_states", "dt", "A", "B", "C", "chunk_size", "D", "dt_bias", "initial_states", "dt_softplus",
        "dt_limit", "return_final_states",
    ),
    "mamba2_selective_state_update": (
        "state", "hidden_states", "dt", "A", "B", "C", "D", "dt_bias", "dt_softplus", "z",
    ),
}  # fmt: skip
_NORM = "RMSNormGated"  # what the names of the gated norms end with
_NORM_ARGUMENTS = ("self", "hidden_states", "gate")

_patched: dict[str, "Patch"] = {}


@dataclass(eq=False, kw_only=True)
class Patch:
    """Families that run on this package's operators, until :meth:`undo` or the end of a `with` block."""

    families: tuple[str, ...]
    implementation: str
    _originals: list[tuple[Any, str, Any, Any]] = field(default_factory=list)  # where, name, what was there, what is

    def undo(self) -> None:
        """Put back what was there.

        Raises:
            RuntimeError: someone replaced a replacement since; nothing is put back then.
        """
        for where, name, _, ours in self._originals:
            if where.__dict__[name] is not ours:
                raise RuntimeError(f"{where.__name__}.{name} was replaced again since: take that back first")
        for where, name, original, _ in self._originals:
            setattr(where, name, original)
        self._originals.clear()
        for family in self.families:
            _patched.pop(family, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def patch_transformers(*families: str, implementation: str = "auto") -> Patch:
    """Make transformers' Mamba-2 family compute on this package's operators: scan, convolution, gated norm, decode.

        patch_transformers()                # for good: every model of the family, built before or later
        with patch_transformers("bamba"):   # or for a while
            model.generate(...)

    Where a gradient is wanted (for an adapter's training, say), a call takes the differentiable torch forms: the Triton
    kernels have no backward. Packed sequences are told by `seq_idx` or `cu_seq_lens_q`, as mamba-ssm's are. Falcon-H1's
    gated norm and a call of another form than the mixers' stay transformers' own.

    Args:
        *families: of :data:`FAMILIES`; all of them by default.
        implementation: `"auto"`, Triton on a GPU and torch on a CPU; `"triton"`; or `"torch"`.

    Returns:
        What undoes it.

    Raises:
        ValueError: an unknown family or implementation.
        RuntimeError: a family that is patched already, or this version of transformers calls its functions otherwise
            than is known here; names what no longer fits, and changes nothing.
        ModuleNotFoundError: transformers is not installed, or has no such family.
    """
    unknown = [family for family in families if family not in FAMILIES]
    if unknown:
        raise ValueError(f"families must be of {tuple(FAMILIES)}, got {unknown[0]!r}")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")
    families = families or tuple(FAMILIES)
    taken = [family for family in families if family in _patched]
    if taken:
        raise RuntimeError(f"{taken[0]!r} is patched already: undo that patch first")
    replacements = [each for family in families for each in _replacements(family, implementation)]
    patch = Patch(families=families, implementation=implementation)
    for where, name, ours in replacements:
        patch._originals.append((where, name, where.__dict__[name], ours))
        setattr(where, name, ours)
    _patched.update(dict.fromkeys(families, patch))
    return patch


def _replacements(family: str, implementation: str) -> list[tuple[Any, str, Callable[..., Any]]]:
    """What takes whose place in a family's modeling module, each found to fit."""
    module = import_module(f"transformers.models.{family}.modeling_{family}")
    mixer = getattr(module, FAMILIES[family], None)
    if mixer is None:
        raise _misfit(module, f"no class {FAMILIES[family]}")
    called = inspect.unwrap(mixer.forward).__code__.co_names
    found: list[tuple[Any, str, Callable[..., Any]]] = []
    for name, arguments in _REPLACED.items():
        original = getattr(module, name, None)
        if original is None:
            raise _misfit(module, f"no function {name}")
        if name not in called:
            raise _misfit(module, f"a {FAMILIES[family]} that does not call {name}")
        _expect_arguments(module, name, original, arguments)
        found.append((module, name, functions.replacement(name, original, implementation)))
    if not any(name.endswith(_NORM) for name in vars(module)):
        raise _misfit(module, f"no class named …{_NORM}")
    # One that a module has from another family is replaced with that family.
    norms = [each for name, each in vars(module).items() if name.endswith(_NORM) and each.__module__ == module.__name__]
    for norm in norms:
        _expect_arguments(module, f"{norm.__name__}.forward", norm.forward, _NORM_ARGUMENTS)
        found.append((norm, "forward", functions.replacement("norm", norm.forward, implementation)))
    return found


def _expect_arguments(module: ModuleType, name: str, original: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    known = inspect.signature(original).parameters
    missing = [argument for argument in arguments if argument not in known]
    if missing:
        raise _misfit(module, f"{name} without the argument {missing[0]!r}")


def _misfit(module: ModuleType, finding: str) -> RuntimeError:
    version = import_module("transformers").__version__
    return RuntimeError(
        f"{module.__name__} of transformers {version} has {finding}; patch_transformers is written for 5.17 to 5.23"
    )
