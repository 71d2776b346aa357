"""The Triton operators as operators of torch: schema, fake, compile, gradient; and what every form refuses."""

import pytest
import torch

import ssd_kernels
from ssd_kernels import OPERATORS, get_op
from ssd_kernels.registry import default_name
from tests.correctness.operator_calls import CALLS
from tests.correctness.problems import DEVICE
from tests.correctness.seen import Seen

pytestmark = pytest.mark.correctness

AROUND = [operator for operator in OPERATORS if operator != "ssd"]  # the scan has tests of its own
IN_PLACE = {
    "causal_conv1d_step": ["window"],
    "ssd_step": ["state"],
    "mixer_step": ["window", "state"],
    "attention_step": ["keys", "values"],
}
both = pytest.mark.parametrize("name", ["torch", "triton"])
WITH_SLOTS = [operator for operator in IN_PLACE if operator != "attention_step"]


def tensors(operator, arguments):
    """The result of a call, and what it changed in place."""
    result = get_op(operator, "triton")(**arguments)
    return [result, *(arguments[name] for name in IN_PLACE.get(operator, []))]


@pytest.mark.parametrize("operator", [operator for operator in AROUND if operator != "mixer_step"])
def test_opcheck_finds_nothing_wrong_with_schema_and_fake(operator):
    function = get_op(operator, "triton")  # registers the operator of torch
    registered = getattr(torch.ops.ssd_kernels, operator).default
    with Seen() as seen:
        function(**CALLS[operator]())
    (arguments,) = [arguments for called, arguments in seen.calls if called is registered]
    torch.library.opcheck(registered, arguments, test_utils=("test_schema", "test_faketensor"))
    changed = [argument.name for argument in registered._schema.arguments if argument.is_write]
    assert changed == IN_PLACE.get(operator, [])


@pytest.mark.parametrize("operator", AROUND)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(operator, dynamic):
    function = get_op(operator, "triton")
    first = next(iter(CALLS[operator]()))
    torch.compiler.reset()  # each operator is new to the one function below

    def doubled(arguments):
        return function(**{**arguments, first: 2 * arguments[first]} if operator != "ssd_step" else arguments)

    compiled, plain = CALLS[operator](), CALLS[operator]()
    with torch.no_grad():
        y = torch.compile(doubled, fullgraph=True, dynamic=dynamic, backend="aot_eager")(compiled)
        assert torch.equal(y, doubled(plain))
    for name in IN_PLACE.get(operator, []):
        assert torch.equal(compiled[name], plain[name])


@pytest.mark.parametrize("operator", ["causal_conv1d_step", "ssd_step", "gated_rms_norm"])
def test_the_default_compiles_without_a_graph_break(operator):
    compiled, plain = CALLS[operator](), CALLS[operator]()
    function = getattr(ssd_kernels, operator)
    get_op(operator, default_name(DEVICE, operator))
    torch.compiler.reset()
    with torch.no_grad():
        y = torch.compile(lambda arguments: function(**arguments), fullgraph=True, backend="aot_eager")(compiled)
        assert torch.equal(y, function(**plain))


def test_bounds_are_checked_when_a_compiled_convolution_runs():
    function = torch.compile(get_op("causal_conv1d", "triton"), fullgraph=True, backend="aot_eager")
    arguments = CALLS["causal_conv1d"]()
    arguments["cu_seqlens"] = arguments["cu_seqlens"].flip(0)
    if DEVICE == "cpu":
        with torch.no_grad(), pytest.raises(ValueError, match=r"cu_seqlens must start at 0, end at seqlen 7"):
            function(**arguments)


@pytest.mark.parametrize("operator", AROUND)
def test_a_gradient_is_refused_with_what_to_do_instead(operator):
    arguments = CALLS[operator]()
    for name in {"weight", "A", "up", "q"} & set(arguments):
        arguments[name].requires_grad_()
    y = get_op(operator, "triton")(**arguments)
    with pytest.raises(NotImplementedError, match=r"has no backward yet: run it under torch.no_grad\(\).*'torch'"):
        y.sum().backward()
    assert not any(arguments[name].requires_grad for name in IN_PLACE.get(operator, []))


@pytest.mark.parametrize("operator", AROUND)
def test_nothing_is_said_of_gradients_where_none_is_wanted(operator):
    arguments = CALLS[operator]()
    for name in {"weight", "A", "up", "q"} & set(arguments):
        arguments[name].requires_grad_()
    with torch.no_grad():
        assert not get_op(operator, "triton")(**arguments).requires_grad


@pytest.mark.parametrize(
    ("operator", "wanted"),
    [("causal_conv1d", ["x", "weight", "bias", "initial_window"]), ("gated_rms_norm", ["y", "z", "weight"])],
)
def test_the_torch_forms_are_differentiable(operator, wanted):
    arguments = {k: v.double() if k in wanted else v for k, v in CALLS[operator]().items()}
    function = get_op(operator, "torch")
    inputs = [arguments.pop(name).requires_grad_() for name in wanted]
    assert torch.autograd.gradcheck(
        lambda *tensors: function(**arguments, **dict(zip(wanted, tensors, strict=True))), inputs
    )


def test_the_torch_step_is_differentiable_but_for_what_it_changes():
    wanted = ["x", "dt", "A", "B", "C", "D", "z", "dt_bias"]
    arguments = {
        k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in CALLS["ssd_step"]().items()
    }
    inputs, state = [arguments.pop(name).requires_grad_() for name in wanted], arguments.pop("state")
    step = get_op("ssd_step", "torch")
    assert torch.autograd.gradcheck(
        lambda *tensors: step(state.clone(), **arguments, **dict(zip(wanted, tensors, strict=True))), inputs
    )


def _long(tensor):
    return tensor.long()


BAD = [
    ("causal_conv1d", "x", lambda x: x[0], ValueError, r"x must have 3 dimensions \(batch, seqlen, channels\), got"),
    ("causal_conv1d", "x", _long, TypeError, r"x: dtype must be one of .* got torch.int64"),
    ("causal_conv1d", "weight", lambda w: w[:5], ValueError, r"weight must have shape .* = \(6, 4\), got \(5, 4\)"),
    ("causal_conv1d", "weight", lambda w: w[:, None], ValueError, r"weight must have 2 dimensions .* got shape"),
    ("causal_conv1d", "weight", lambda w: w[:, :0], ValueError, r"weight: width must be at least 1, got 0"),
    ("causal_conv1d", "bias", lambda b: b[:1], ValueError, r"bias must have shape \(channels,\) = \(6,\), got \(1,\)"),
    ("causal_conv1d", "activation", lambda _: "gelu", ValueError, r"activation must be one of .* got 'gelu'"),
    ("causal_conv1d", "initial_window", lambda w: w[:2], ValueError, r"initial_window must have shape \(nseqs, "),
    ("causal_conv1d", "initial_window", lambda w: w.half(), TypeError, r"initial_window: dtype must be that of x"),
    ("causal_conv1d", "initial_window", lambda w: w.to("meta"), ValueError, r"initial_window must be on the device"),
    ("causal_conv1d", "x", lambda x: x.expand(2, -1, -1), ValueError, r"x: with cu_seqlens the batch must be 1, got 2"),
    ("causal_conv1d", "cu_seqlens", lambda c: c[None], ValueError, r"cu_seqlens must have shape \(nseqs \+ 1,\)"),
    ("causal_conv1d", "cu_seqlens", lambda c: c[:0], ValueError, r"cu_seqlens must have shape .* got \(0,\)"),
    ("causal_conv1d", "cu_seqlens", lambda c: c[:1], ValueError, r"cu_seqlens must bound the seqlen 7 tokens"),
    ("causal_conv1d", "cu_seqlens", lambda c: c.short(), TypeError, r"cu_seqlens: dtype must be one of .* torch.int16"),
    ("causal_conv1d", "cu_seqlens", lambda c: c.to("meta"), ValueError, r"cu_seqlens must be on the device of x"),
    ("causal_conv1d_step", "x", lambda x: x[0], ValueError, r"x must have 2 dimensions \(batch, channels\)"),
    ("causal_conv1d_step", "window", lambda w: w[..., 1:], ValueError, r"window must have shape .* got \(3, 6, 2\)"),
    ("causal_conv1d_step", "window", lambda w: w.half(), TypeError, r"window: dtype must be that of x"),
    ("causal_conv1d_step", "slots", lambda s: s[:1], ValueError, r"slots must have shape \(batch,\) = \(2,\), got"),
    ("causal_conv1d_step", "slots", lambda s: s.float(), TypeError, r"slots: dtype must be one of .* torch.float32"),
    ("gated_rms_norm", "y", lambda y: y[..., :0], ValueError, r"y must have shape \(…, width\), width at least 1, got"),
    ("gated_rms_norm", "z", lambda z: z[0], ValueError, r"z must have shape that of y = \(2, 3, 8\), got \(3, 8\)"),
    ("gated_rms_norm", "weight", lambda w: w[:4], ValueError, r"weight must have shape \(width,\) = \(8,\), got"),
    ("gated_rms_norm", "weight", _long, TypeError, r"weight: dtype must be one of .* torch.int64"),
    ("gated_rms_norm", "z", lambda z: z.to("meta"), ValueError, r"z must be on the device of y"),
    ("gated_rms_norm", "groups", lambda _: 3, ValueError, r"groups must divide width 8, got 3"),
    ("gated_rms_norm", "groups", lambda _: 2.0, TypeError, r"groups must be an int, got 2.0"),
    ("gated_rms_norm", "eps", lambda _: -1.0, ValueError, r"eps must be finite and not negative, got -1.0"),
    ("ssd_step", "state", lambda s: s[..., :4], ValueError, r"state must have shape .* got \(3, 4, 4, 4\)"),
    ("ssd_step", "state", lambda s: s.double(), TypeError, r"state: dtype must be one of .* got torch.float64"),
    ("ssd_step", "x", lambda x: x[:, :3], ValueError, r"B: ngroups must divide nheads 3, got ngroups 2"),
    ("ssd_step", "B", lambda B: B.half(), TypeError, r"B: dtype must be that of x"),
    ("ssd_step", "C", lambda C: C[:, :1], ValueError, r"C must have shape .* = \(2, 2, 8\), got \(2, 1, 8\)"),
    ("ssd_step", "dt", lambda dt: dt[..., None], ValueError, r"dt must have shape \(batch, nheads\) = \(2, 4\)"),
    ("ssd_step", "D", lambda D: D[:, None], ValueError, r"D must have shape \(nheads, headdim\) = .* \(4, 1\)"),
    ("ssd_step", "z", lambda z: z[:1], ValueError, r"z must have shape \(batch, nheads, headdim\) = \(2, 4, 4\)"),
    ("ssd_step", "dt_limit", lambda _: (1.0, 0.0), ValueError, r"dt_limit must be \(low, high\)"),
]  # fmt: skip


@both
@pytest.mark.parametrize(
    ("operator", "argument", "spoil", "error", "message"), BAD, ids=[f"{b[0]}-{b[1]}-{i}" for i, b in enumerate(BAD)]
)
def test_bad_input_is_named_with_expectation_and_finding_and_explained_alike(
    name, operator, argument, spoil, error, message
):
    arguments = CALLS[operator]()
    arguments[argument] = spoil(arguments[argument])
    with pytest.raises(error, match=message):
        get_op(operator, name)(**arguments)
    with pytest.raises(error, match=message):
        ssd_kernels.explain(operator, implementation=name, **arguments)


@both
@pytest.mark.parametrize("operator", WITH_SLOTS)
@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU the host does not read slots")
@pytest.mark.parametrize("slots", [[0, 3], [-1, 0], [1, 1]])
def test_slots_out_of_range_or_twice_are_refused_and_nothing_is_changed(name, operator, slots):
    arguments = CALLS[operator]()
    arguments["slots"] = torch.tensor(slots)
    kept = {memory: arguments[memory].clone() for memory in IN_PLACE[operator]}
    with pytest.raises(ValueError, match=r"slots must be different indices in \[0, nslots 3\), got \["):
        get_op(operator, name)(**arguments)
    assert all(torch.equal(arguments[memory], value) for memory, value in kept.items())


@both
@pytest.mark.parametrize("operator", WITH_SLOTS)
def test_more_rows_than_slots_are_refused(name, operator):
    arguments = CALLS[operator]()
    arguments.update({memory: arguments[memory][:1] for memory in IN_PLACE[operator]}, slots=None)
    with pytest.raises(
        ValueError, match=r"(window|state) must have at least as many slots as there are rows, 2, got 1"
    ):
        get_op(operator, name)(**arguments)


@pytest.mark.parametrize("operator", AROUND)
def test_triton_refuses_fp64(operator):
    arguments = {
        k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in CALLS[operator]().items()
    }
    with pytest.raises(TypeError, match=r"dtype must be float32, bfloat16 or float16 for 'triton', got torch.float64"):
        get_op(operator, "triton")(**arguments)


@pytest.mark.parametrize("operator", ["causal_conv1d", "causal_conv1d_step", "mixer_step"])
@pytest.mark.parametrize("width", [1, 5])
def test_triton_refuses_other_widths_than_two_to_four(operator, width):
    arguments = CALLS[operator]()
    arguments["weight"] = arguments["weight"].repeat(1, 2)[:, :width]
    window = "initial_window" if operator == "causal_conv1d" else "window"
    arguments[window] = arguments[window].repeat(1, 1, 2)[..., : width - 1]
    for call in (get_op(operator, "triton"), lambda **kw: ssd_kernels.explain(operator, implementation="triton", **kw)):
        with pytest.raises(
            NotImplementedError, match=rf"weight: 'triton' supports widths 2 to 4, got {width}; 'torch'"
        ):
            call(**arguments)
