"""Which calls the Hopper kernels take, in which configuration, and what the default does about it."""

import pytest
import torch

import ssd_kernels.hopper.coverage as coverage
import ssd_kernels.hopper.launches as launches
from ssd_kernels import explain, get_ssd
from ssd_kernels.hopper import configs
from ssd_kernels.hopper.configs import CHUNK, Cut, scan_config
from ssd_kernels.hopper.slots import count_slots
from ssd_kernels.interface import Sizes
from tests.correctness.problems import DEVICE, HOPPER, Problem

pytestmark = pytest.mark.correctness

PROBLEM = Problem(batch=2, seqlen=70, nheads=4, ngroups=2, headdim=64, d_state=128, chunk_size=128)
BAMBA = Sizes(batch=1, seqlen=8192, nheads=128, headdim=64, ngroups=1, d_state=128)
on_cpu = pytest.mark.skipif(DEVICE == "cuda", reason="pretends that there is a Hopper GPU")


def fits(inputs, **changes):
    """What the rule says, whatever the device."""
    names = ("x", "B", "C", "chunk_size")
    call = {name: inputs[name] for name in names} | {"cu_seqlens": inputs.get("cu_seqlens"), **changes}
    others = {"dt_softplus": inputs["dt_softplus"], "dt_low": inputs["dt_limit"][0], "return_chunk_states": False}
    return coverage.fits(**{**others, **call})


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"strided": True}, {"headdim": 128}, {"d_state": 64}, {"d_state": 256}, {"chunk_size": 64},
        {"initial": False, "skip": False}, {"batch": 1, "lengths": (0, 1, 69)}, {"seqlen": 1, "batch": 1},
        {"nheads": 3, "ngroups": 3},
        {"nheads": 1, "ngroups": 1, "batch": 1},
    ],
    ids=str,
)  # fmt: skip
def test_takes_what_models_bring(changes):
    assert fits(PROBLEM.but(**changes).inputs(torch.bfloat16)) is None


@pytest.mark.parametrize(
    ("changes", "why_not"),
    [
        ({"headdim": 32}, "headdim must be a multiple of 64, got 32"),
        ({"d_state": 96}, "d_state must be one of (64, 128, 256), got 96"),
        ({"chunk_size": 100}, "chunk_size must be a multiple of 64, got 100"),
    ],
)
def test_says_which_size_it_does_not_take(changes, why_not):
    assert fits(PROBLEM.but(**changes).inputs(torch.bfloat16)) == why_not


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_takes_bf16_only(dtype):
    assert fits(PROBLEM.inputs(dtype)) == f"x: dtype must be torch.bfloat16, got {dtype}"


def test_takes_negative_steps_only_where_softplus_follows():
    """Where they may be left, a state that grows is taken for one that is forgotten if it decays after that."""
    inputs = PROBLEM.inputs(torch.bfloat16)
    assert fits(inputs, dt_softplus=True, dt_low=-1.0) is None
    said = "dt_limit must begin at 0 or above where dt_softplus is False, got -1.0"
    assert fits(inputs, dt_softplus=False, dt_low=-1.0) == said


def test_returns_no_chunk_states():
    inputs = PROBLEM.inputs(torch.bfloat16)
    assert fits(inputs, return_chunk_states=True) == "return_chunk_states must be False, got True"


@pytest.mark.parametrize(
    ("view", "why_not"),
    [
        (lambda x: x.mT.contiguous().mT, "must have channels side by side"),
        (lambda x: x[:, :1].expand_as(x), "must have positive strides of multiples of 8 elements"),
        (lambda x: torch.nn.functional.pad(x, (0, 4))[..., :-4], "must have positive strides of multiples of 8"),
        (lambda x: x.new_empty(x.numel() + 1)[1:].view_as(x), "must start at a multiple of 16 bytes, got offset 2"),
    ],
    ids=["transposed", "expanded", "padded", "shifted"],
)
@pytest.mark.parametrize("name", ["x", "B", "C"])
def test_says_which_tensor_tma_does_not_take(name, view, why_not):
    inputs = PROBLEM.inputs(torch.bfloat16)
    said = fits(inputs, **{name: view(inputs[name])})
    assert said.startswith(f"{name} {why_not}")


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_the_stride_of_a_dimension_of_one_does_not_matter(dim):
    inputs = PROBLEM.but(batch=1, seqlen=1, nheads=1, ngroups=1).inputs(torch.bfloat16)
    strides = list(inputs["x"].stride())
    strides[dim] = 3
    assert fits(inputs, x=inputs["x"].as_strided(inputs["x"].shape, strides)) is None


def test_more_than_32_bits_can_count_is_left_to_others():
    x = torch.empty(1, 1, 1, 64, dtype=torch.bfloat16, device=DEVICE).expand(1, 2**23, 128, 64)
    B = torch.empty(1, 1, 1, 64, dtype=torch.bfloat16, device=DEVICE).expand(1, 2**23, 1, 64)
    said = coverage.fits(
        x, B, B, chunk_size=64, dt_softplus=True, dt_low=0.0, cu_seqlens=None, return_chunk_states=False
    )
    assert said.startswith("x must have fewer tokens and heads: their decays take 4294967296 elements")


@pytest.mark.skipif(HOPPER, reason="here it runs")
def test_elsewhere_hopper_says_what_it_needs():
    inputs = PROBLEM.inputs(torch.bfloat16)
    for call in (get_ssd("hopper"), lambda **kw: explain("ssd", implementation="hopper", **kw)):
        with pytest.raises(RuntimeError, match=r"x must be on a GPU of compute capability 9\.0 for 'hopper', got"):
            call(**inputs)


@pytest.fixture
def pretended(monkeypatch):
    """Everything that asks is told that this is an H200; what the operator would run is noted instead."""
    import ssd_kernels.hopper.launcher as launcher
    import ssd_kernels.hopper.operator as operator

    calls = []

    def run(x, *arguments):
        calls.append((x, *arguments))
        B = arguments[2]
        return (
            torch.zeros_like(x),
            x.new_zeros(x.shape[0], *x.shape[2:], B.shape[3], dtype=torch.float32),
            x.new_zeros(0),
        )

    for module in (coverage, launches, operator):
        monkeypatch.setattr(module, "is_hopper", lambda device: True)
    monkeypatch.setattr(launches, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(launcher, "run", run)
    return calls


@on_cpu
@pytest.mark.parametrize("name", ["triton", "hopper"])
def test_what_the_kernels_take_goes_to_them(name, pretended):
    inputs = PROBLEM.inputs(torch.bfloat16)
    get_ssd(name)(**inputs)
    assert len(pretended) == 1
    assert pretended[0][0] is not None
    assert pretended[0][8:13] == (128, True, 0.0, float("inf"), "all")


@on_cpu
def test_what_they_do_not_take_goes_to_the_portable_kernels(pretended):
    inputs = PROBLEM.inputs(torch.float32)
    results = [get_ssd(name)(**inputs, return_final_state=True) for name in ("triton", "portable")]
    assert pretended == []
    assert all(map(torch.equal, *results))
    with pytest.raises(
        NotImplementedError, match=r"'hopper' does not take this call: x: dtype must be torch\.bfloat16"
    ):
        get_ssd("hopper")(**inputs)


@on_cpu
def test_it_is_explained_which_kernels_a_call_takes_and_why(pretended):
    said = explain("ssd", implementation="triton", **PROBLEM.inputs(torch.bfloat16))
    assert said.why == "asked for by name; the Hopper kernels cover it"
    assert [kernel.name for kernel in said.kernels] == ["_prepare_kernel", "_scan_kernel"]
    assert said.kernels[1].config["CONSUMERS"] == 1
    said = explain("ssd", implementation="triton", **PROBLEM.inputs(torch.float32))
    assert said.why.endswith(
        "the portable kernels, as for the Hopper kernels x: dtype must be torch.bfloat16, got torch.float32"
    )
    assert said.kernels == explain("ssd", implementation="portable", **PROBLEM.inputs(torch.float32)).kernels
    with pytest.raises(NotImplementedError, match="'hopper' does not take this call: d_state"):
        explain("ssd", implementation="hopper", **PROBLEM.but(d_state=32).inputs(torch.bfloat16))


def sized(**changes):
    """Bamba-9B's scan with some sizes changed."""
    return Sizes(**{**vars(BAMBA), **changes})


@pytest.mark.parametrize(
    ("changes", "consumers", "segments", "pieces"),
    [
        ({"seqlen": 1024}, 1, 1, 1), ({"seqlen": 2048}, 1, 1, 1), ({}, 1, 1, 1), ({"seqlen": 16384}, 1, 1, 1),
        ({"seqlen": 32768}, 1, 1, 1), ({"seqlen": 65536}, 2, 2, 4),
        ({"batch": 8, "seqlen": 2048}, 2, 1, 1),
        ({"batch": 8, "seqlen": 2048, "nheads": 80}, 1, 1, 1), ({"batch": 32, "seqlen": 1024}, 2, 1, 1),
        ({"batch": 16, "seqlen": 1024}, 2, 1, 1), ({"seqlen": 16384, "nseqs": 16}, 2, 1, 1),
        ({"nheads": 24}, 2, 11, 1), ({"nheads": 48}, 2, 4, 2), ({"nheads": 80}, 1, 1, 1),
        ({"nheads": 48, "d_state": 256}, 1, 2, 4), ({"nheads": 24, "headdim": 128, "d_state": 256}, 1, 2, 4),
        ({"nheads": 32, "headdim": 128, "ngroups": 2, "d_state": 256}, 1, 2, 4),
        ({"seqlen": 2048, "nheads": 48, "d_state": 256}, 1, 2, 1),
        ({"batch": 8, "seqlen": 2048, "nheads": 32, "d_state": 256}, 1, 1, 1),
    ],
    ids=str,
)  # fmt: skip
def test_the_configuration_is_the_one_that_was_measured_to_be_best(changes, consumers, segments, pieces):
    assert asked(sized(**changes), None) == (consumers, segments, pieces)


def test_segments_have_many_pieces_where_few_are_as_fast_only_if_every_head_forgets_soon():
    assert asked(sized(seqlen=131072), None) == (2, 2, 4)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("nheads", [24, 48, 80, 128])
def test_segments_that_need_states_are_all_on_the_gpu_at_once(batch, nheads):
    for seqlen in (2048, 8192, 65536):
        consumers, segments, _ = asked(sized(batch=batch, nheads=nheads, seqlen=seqlen), None)
        assert segments == 1 or batch * nheads // consumers * segments <= 132


@pytest.mark.parametrize("period", [1, 4])
def test_where_the_state_restarts_the_cut_is_the_one_that_was_measured_to_be_best(period):
    assert asked(BAMBA, period) == (2, 2, 1)


def asked(sizes, period):
    """Consumers, segments and pieces of a segment."""
    chosen = scan_config(sizes, period, 132)
    return chosen.consumers, chosen.cut.segments, chosen.cut.pieces_of_segment


@pytest.mark.parametrize("seqlen", [1, 64, 1000, 8192, 131072])
@pytest.mark.parametrize("nheads", [1, 3, 24, 80, 112, 128])
@pytest.mark.parametrize("period", [None, 1, 4])
@pytest.mark.parametrize("nseqs", [None, 5])
def test_every_choice_can_be_launched(seqlen, nheads, period, nseqs):
    for d_state, headdim in ((64, 64), (128, 128), (256, 64)):
        sizes = sized(seqlen=seqlen, nheads=nheads, headdim=headdim, d_state=d_state, nseqs=nseqs)
        chosen = scan_config(sizes, period, 132)
        assert nheads * headdim // 64 % chosen.consumers == 0
        assert chosen.cut.segments == 1 or period or chosen.cut.pieces * configs.GROUP <= 2 * -(-seqlen // CHUNK)
        tile = CHUNK * 2 * (2 * d_state + CHUNK)
        of_consumer = CHUNK * 2 * 64 + 8 * CHUNK + 128
        handed_over = CHUNK * 4 * 64 if d_state > configs.WIDTH else 0
        of_stage = tile + chosen.consumers * of_consumer + handed_over
        bytes_ = chosen.stages * of_stage + chosen.consumers * CHUNK * 2 * 64
        assert bytes_ < 227 * 1024


def test_pieces_are_counted_from_segments():
    assert (Cut().pieces, Cut().pieces_before_last) == (1, 0)
    assert (Cut(segments=3, pieces_of_segment=2).pieces, Cut(segments=3, pieces_of_segment=2).pieces_before_last) == (
        6,
        4,
    )


@pytest.mark.parametrize("lengths", [(0,), (1,), (64,), (65, 0, 63, 1, 128), (1,) * 70, (0, 0, 200)], ids=str)
def test_every_chunk_of_packed_sequences_has_a_slot_of_its_own(lengths):
    taken, start = [], 0
    for i, length in enumerate(lengths):
        first = start // CHUNK + i
        taken += range(first, first + -(-length // CHUNK))
        start += length
    assert len(set(taken)) == len(taken)
    assert max(taken, default=-1) < count_slots(sum(lengths), len(lengths), CHUNK)
