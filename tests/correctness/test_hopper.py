"""The Hopper scan: its mathematics on any machine, by a model of its last kernel; itself where there is such a GPU."""

import functools

import pytest
import torch

from ssd_kernels import get_ssd
from ssd_kernels.hopper.configs import CHUNK, PART, WIDTH, Cut
from tests.correctness.hopper_model import hopper_model
from tests.correctness.hopper_scans import both, by_hopper, by_two_warpgroups, check, on_cpu
from tests.correctness.implementations import carries, needs_hopper
from tests.correctness.operator_problems import poisoned_memory
from tests.correctness.problems import DEVICE, Problem

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]

PROBLEM = Problem(batch=1, seqlen=330, nheads=2, ngroups=1, headdim=64, d_state=64, chunk_size=128)
LENGTHS = (100, 0, 1, 64, 129, 36)
PROBLEMS = {
    "as a model": PROBLEM,
    "shorter than a chunk": PROBLEM.but(seqlen=63),
    "one token": PROBLEM.but(seqlen=1, initial=False),
    "batch of views": PROBLEM.but(batch=2, seqlen=130, strided=True, by_channel=True),
    "groups": PROBLEM.but(nheads=6, ngroups=2, seqlen=65),
    "wide heads": PROBLEM.but(headdim=128, d_state=128, nheads=1, seqlen=200),
    "wide states": PROBLEM.but(d_state=256, seqlen=200),
    "wide states, each stage many times": PROBLEM.but(d_state=256, seqlen=1100, nheads=5),
    "wide states and heads, in groups": PROBLEM.but(d_state=256, headdim=128, ngroups=2, seqlen=130, by_channel=True),
    "nothing optional": PROBLEM.but(skip=False, bias=False, softplus=False, initial=False, seqlen=128),
    "slow": PROBLEM.but(dt_regime="slow"),
    "fast": PROBLEM.but(dt_regime="fast"),
    "packed": PROBLEM.but(lengths=LENGTHS),
    "packed, fast": PROBLEM.but(lengths=LENGTHS, dt_regime="fast", strided=True),
    "packed, wide states, fast": PROBLEM.but(lengths=LENGTHS, d_state=256, dt_regime="fast"),
    "packed, none but one": PROBLEM.but(lengths=(0, 70, 0, 0), seqlen=70),
}
# Two warpgroups take two parts of heads of one group, whose states one warpgroup can carry.
OF_TWO = {
    name: problem
    for name, problem in PROBLEMS.items()
    if problem.d_state <= WIDTH and problem.nheads * problem.headdim // PART // problem.ngroups % 2 == 0
}
CUTS = [Cut(segments=2), Cut(segments=3, pieces_of_segment=2)]

every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@both
@carries
@every_problem
def test_equals_the_recurrence(scan, carry, problem):
    check(scan, problem.inputs(torch.bfloat16), carry)


@needs_hopper
@carries
@pytest.mark.parametrize("cut", [Cut(), *CUTS], ids=["whole", "2 segments", "3 segments of 2 pieces"])
@pytest.mark.parametrize("problem", OF_TWO.values(), ids=OF_TWO)
def test_programs_of_two_warpgroups_equal_the_recurrence(carry, cut, problem):
    """Their loop is in another order than that of one, which is what so few heads take by themselves."""
    check(by_two_warpgroups, problem.inputs(torch.bfloat16), carry, cut)


@both
@carries
@pytest.mark.parametrize("cut", CUTS, ids=["2 segments", "3 segments of 2 pieces"])
@pytest.mark.parametrize(
    "problem",
    [
        PROBLEM.but(seqlen=900),
        PROBLEM.but(seqlen=900, dt_regime="slow"),
        PROBLEM.but(seqlen=700, dt_regime="fast"),
        PROBLEM.but(seqlen=866, lengths=(400, 0, 1, 65, 400), dt_regime="slow"),
        PROBLEM.but(seqlen=700, d_state=256),
        PROBLEM.but(seqlen=10),
    ],
    ids=["as a model", "slow", "fast", "packed, slow", "wide states", "fewer tokens than segments"],
)
def test_programs_that_share_a_sequence_equal_the_recurrence(scan, carry, cut, problem):
    check(scan, problem.inputs(torch.bfloat16), carry, cut)


def rising_steps(inputs, largest):
    """Steps drawn evenly up to `largest`, so that decays of all sizes meet."""
    generator = torch.Generator().manual_seed(3)
    dt = torch.rand(inputs["dt"].shape, generator=generator, dtype=torch.float64) * largest
    return {**inputs, "dt": dt.to(inputs["dt"])}


@both
@pytest.mark.parametrize("largest", [0.02, 0.1, 0.3, 1.0, 3.0, 30.0, 300.0], ids="steps to {}".format)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["plain", "packed"])
def test_chunks_that_decay_by_any_amount_side_by_side_equal_the_recurrence(scan, largest, lengths):
    """From a fraction of a power of two to thousands of nats a token."""
    inputs = PROBLEM.but(softplus=False, bias=False, lengths=lengths, nheads=4).inputs(torch.bfloat16)
    inputs["A"] = torch.tensor([-0.1, -1.0, -4.0, -16.0], device=DEVICE)
    check(scan, rising_steps(inputs, largest))


@both
@pytest.mark.parametrize("largest", [0.02, 0.3])
def test_states_that_grow_equal_the_recurrence(scan, largest):
    """A > 0, which the interface does not promise and the kernels stand, as long as fp32 does."""
    inputs = rising_steps(PROBLEM.but(softplus=False, bias=False).inputs(torch.bfloat16), largest)
    inputs["A"] = torch.tensor([0.2, 0.9], device=DEVICE)
    check(scan, inputs)


@on_cpu
def test_steps_are_right_to_sixteen_bits_however_small():
    """Where nothing decays, w is the step itself, in two bf16 numbers of which the second may not underflow."""
    inputs = PROBLEM.but(bias=False, initial=False, seqlen=256).inputs(torch.bfloat16)
    inputs["A"] = torch.zeros_like(inputs["A"])
    inputs["dt"] = torch.linspace(-70, 30, 512).reshape(inputs["dt"].shape)
    _, _, run = hopper_model(inputs)
    w = run.prepared.factors[..., : 2 * CHUNK].unflatten(-1, (2, CHUNK)).double().sum(-2)
    exact = torch.log1p(inputs["dt"].double().exp())
    torch.testing.assert_close(w.flatten(2).transpose(1, 2), exact, rtol=2.0**-15, atol=0)


@both
def test_one_huge_step_among_small_ones_loses_nothing(scan):
    """Of long running sums, two cancel."""
    inputs = PROBLEM.but(softplus=False, bias=False).inputs(torch.bfloat16)
    inputs["dt"] = torch.full_like(inputs["dt"], 1e-3)
    inputs["dt"][:, [10, 70, 200]] = 1e3
    check(scan, inputs)


@needs_hopper
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["plain", "packed"])
def test_the_same_call_twice_gives_the_same_bits(lengths):
    inputs = rising_steps(PROBLEM.but(softplus=False, bias=False, lengths=lengths).inputs(torch.bfloat16), 1.0)
    first = by_hopper(inputs)
    for _ in range(10):
        assert all(map(torch.equal, by_hopper(inputs), first))


@both
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.parametrize("spoilt", [1, 3, 4])
def test_what_one_packed_sequence_holds_reaches_no_other(scan, spoilt):
    lengths = (100, 30, 0, 64, 136)
    inputs = PROBLEM.but(lengths=lengths, seqlen=330).inputs(torch.bfloat16)
    clean_y, clean_states = scan(inputs)
    part = slice(sum(lengths[:spoilt]), sum(lengths[: spoilt + 1]))
    inputs = {**inputs, **{key: inputs[key].clone() for key in ("x", "dt", "B", "C", "initial_state")}}
    for key in ("x", "dt", "B", "C"):
        inputs[key][:, part] = float("nan")
    inputs["initial_state"][spoilt] = float("nan")
    y, states = scan(inputs)
    assert y[:, part].isnan().all()
    y[:, part] = clean_y[:, part]
    states[spoilt] = clean_states[spoilt]
    assert torch.equal(y, clean_y)
    assert torch.equal(states, clean_states)


@needs_hopper
def test_a_call_can_be_captured_and_replayed_with_other_bounds():
    inputs = PROBLEM.but(lengths=LENGTHS).inputs(torch.bfloat16)
    by_hopper(inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, state = by_hopper(inputs)
    inputs["cu_seqlens"].copy_(torch.tensor([0, 1, 66, 66, 200, 201, 330]))
    graph.replay()
    assert all(map(torch.equal, by_hopper(inputs), (y, state)))


@needs_hopper
def test_compiles_without_a_graph_break():
    ssd = functools.partial(get_ssd("hopper"), return_final_state=True)
    inputs = PROBLEM.inputs(torch.bfloat16)
    x = inputs.pop("x")

    def scaled(x, inputs):
        return ssd(2 * x, **inputs)

    with torch.no_grad():
        compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")(x, inputs)
        assert all(map(torch.equal, compiled, scaled(x, inputs)))
