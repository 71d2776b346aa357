"""Bad input: every error names the argument, what was expected, and what was found."""

import pytest
import torch

from ssd_kernels import get_ssd, names, ssd
from ssd_kernels.registry import default_name
from tests.correctness.problems import DEVICE, Problem

pytestmark = pytest.mark.correctness

PROBLEM = Problem(batch=2, seqlen=6, nheads=4, ngroups=2, headdim=8, d_state=16, chunk_size=4)
every_implementation = pytest.mark.parametrize("name", names())
BAD = [
    ("x", lambda x: x[0], ValueError, r"x must have 4 dimensions .* got shape \(6, 4, 8\)"),
    ("B", lambda B: B[..., 0], ValueError, r"B must have 4 dimensions .* got shape \(2, 6, 2\)"),
    ("dt", lambda dt: dt[:, :5], ValueError, r"dt must have shape .* = \(2, 6, 4\), got \(2, 5, 4\)"),
    ("A", lambda A: A[:3], ValueError, r"A must have shape \(nheads,\) = \(4,\), got \(3,\)"),
    ("B", lambda B: B[:1], ValueError, r"B must have shape .* got \(1, 6, 2, 16\)"),
    ("C", lambda C: C[..., :8], ValueError, r"C must have shape .* = \(2, 6, 2, 16\), got \(2, 6, 2, 8\)"),
    ("D", lambda D: D[:1], ValueError, r"D must have shape \(nheads,\) = \(4,\), got \(1,\)"),
    ("dt_bias", lambda b: b[None], ValueError, r"dt_bias must have shape \(nheads,\) = \(4,\), got \(1, 4\)"),
    ("initial_state", lambda h: h.mT, ValueError, r"initial_state must have shape .* got \(2, 4, 16, 8\)"),
    ("initial_state", lambda h: h.half(), TypeError, r"initial_state: dtype must be torch.float32 .* torch.float16"),
    ("x", lambda x: x.int(), TypeError, r"x: dtype must be one of .* got torch.int32"),
    ("C", lambda C: C.bfloat16(), TypeError, r"C: dtype must be that of x, torch.float32, got torch.bfloat16"),
    ("dt", lambda dt: dt.long(), TypeError, r"dt: dtype must be floating point, got torch.int64"),
    ("A", lambda A: A.to("meta"), ValueError, r"A must be on the device of x, .* got meta"),
    ("chunk_size", lambda _: 0, ValueError, r"chunk_size must be at least 1, got 0"),
    ("chunk_size", lambda _: 4.0, TypeError, r"chunk_size must be an int, got 4.0"),
    ("dt_limit", lambda _: (1.0, 0.0), ValueError, r"dt_limit must be \(low, high\).* got \(1.0, 0.0\)"),
    ("carry", lambda _: "some", ValueError, r"carry must be one of \('all', 'none'\), got 'some'"),
    ("carry", lambda _: "window:2", NotImplementedError, r"carry 'window:2' is not supported yet"),
    (
        "D",
        lambda D: D[:, None].expand(4, 7),
        ValueError,
        r"D must have shape \(nheads, headdim\) = \(4, 8\), got",
    ),
    ("D", lambda D: D[:, None, None], ValueError, r"D must have shape \(nheads,\) = \(4,\), got \(4, 1, 1\)"),
    (
        "cu_seqlens",
        lambda _: torch.tensor([0, 6], device=DEVICE),
        ValueError,
        r"x: batch must be 1 where cu_seqlens packs .* got 2",
    ),
]


@every_implementation
@pytest.mark.parametrize(("argument", "spoil", "error", "message"), BAD, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD)])
def test_bad_input_is_named_with_expectation_and_finding(name, argument, spoil, error, message):
    inputs = {**PROBLEM.inputs(), "carry": "all", "cu_seqlens": None}
    with pytest.raises(error, match=message):
        get_ssd(name)(**{**inputs, argument: spoil(inputs[argument])})


PACKED = PROBLEM.but(batch=1, lengths=(2, 0, 4))
BAD_PACKED = [
    ("cu_seqlens", lambda c: c[None], ValueError, r"cu_seqlens must have shape \(nseqs \+ 1,\), got \(1, 4\)"),
    ("cu_seqlens", lambda c: c[:0], ValueError, r"cu_seqlens must have shape \(nseqs \+ 1,\), got \(0,\)"),
    ("cu_seqlens", lambda c: c[:1], ValueError, r"cu_seqlens must have .*\(nseqs \+ 1,\).* for 6 tokens, got \(1,\)"),
    ("cu_seqlens", lambda c: c.float(), TypeError, r"cu_seqlens: dtype must be torch.int32 or .* got torch.float32"),
    ("cu_seqlens", lambda c: c.to("meta"), ValueError, r"cu_seqlens must be on the device of x, .* got meta"),
    ("initial_state", lambda h: h[:1], ValueError, r"initial_state must have shape \(nseqs, .* = \(3, 4.*got \(1, 4"),
]
BAD_VALUES = [[1, 2, 2, 6], [0, 2, 2, 5], [0, 4, 2, 6], [0, 2, 2, 7], [-1, 2, 2, 6]]


@every_implementation
@pytest.mark.parametrize(
    ("argument", "spoil", "error", "message"), BAD_PACKED, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD_PACKED)]
)
def test_bad_packing_is_named_with_expectation_and_finding(name, argument, spoil, error, message):
    inputs = PACKED.inputs()
    with pytest.raises(error, match=message):
        get_ssd(name)(**{**inputs, argument: spoil(inputs[argument])})


@every_implementation
@pytest.mark.parametrize("values", BAD_VALUES, ids=str)
def test_bounds_that_do_not_run_from_0_to_seqlen_are_refused_where_the_host_reads_them(name, values):
    inputs = {**PACKED.inputs(), "cu_seqlens": torch.tensor(values, device=DEVICE)}
    # Triton does not read them on a GPU, but for the shape of the chunk states.
    with pytest.raises(ValueError, match=r"cu_seqlens must start at 0, end at seqlen 6 and never decrease, got \["):
        get_ssd(name)(**inputs, return_chunk_states=True)


@every_implementation
def test_groups_that_do_not_divide_the_heads_are_refused(name):
    inputs = PROBLEM.inputs()
    inputs.update({key: inputs[key].repeat(1, 1, 2, 1)[:, :, :3] for key in ("B", "C")})
    with pytest.raises(ValueError, match=r"B: ngroups must divide nheads 4, got ngroups 3"):
        get_ssd(name)(**inputs)


def test_triton_refuses_fp64():
    inputs = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in PROBLEM.inputs().items()}
    with pytest.raises(
        TypeError, match=r"x: dtype must be float32, bfloat16 or float16 for 'triton', got torch.float64"
    ):
        get_ssd("triton")(**inputs)


@pytest.mark.parametrize("name", ["mamba", "", "ssd_kernels:", ":ssd", "ssd_kernels.chunked:nothing"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match=r"recurrent.*chunked.*triton|has no callable"):
        get_ssd(name)


def test_a_stranger_is_found_by_module_and_function():
    assert get_ssd("ssd_kernels.chunked:chunked") is get_ssd("chunked")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        get_ssd("no_such_package:ssd")


def test_the_default_is_that_of_the_tensors_device():
    inputs = PROBLEM.inputs()
    expected = get_ssd({"cpu": "chunked", "cuda": "triton"}[DEVICE])(**inputs)
    assert torch.equal(ssd(**inputs), expected)
    with pytest.raises(NotImplementedError, match="no default SSD implementation for device 'meta'"):
        default_name("meta")
