"""Each operator is found by name, has a default for each device, and refuses what it does not know."""

import subprocess
import sys

import pytest
import torch

import ssd_kernels
from ssd_kernels import OPERATORS, get_op, get_ssd, names
from ssd_kernels.registry import default_name, target
from tests.correctness.operator_calls import CALLS
from tests.correctness.problems import DEVICE

pytestmark = pytest.mark.correctness

every_operator = pytest.mark.parametrize("operator", OPERATORS)


def test_there_is_a_call_to_test_of_every_operator():
    assert set(CALLS) == set(OPERATORS)


@every_operator
def test_every_name_stands_for_a_function_of_the_right_module(operator):
    assert "triton" in names(operator)
    for name in names(operator):
        module, _, function = target(operator, name).partition(":")
        assert get_op(operator, name) is getattr(sys.modules[module], function)


def test_get_ssd_is_get_op_of_the_scan():
    assert names() == names("ssd") == ("recurrent", "chunked", "triton", "portable", "hopper")
    assert all(get_ssd(name) is get_op("ssd", name) for name in names())


@every_operator
def test_a_stranger_is_found_by_module_and_function(operator):
    assert get_op(operator, "tests.correctness.operator_calls:stranger")() == "a stranger's"
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        get_op(operator, "no_such_package:function")


@every_operator
@pytest.mark.parametrize("name", ["", "mamba", "torch:", ":ssd", "ssd_kernels.norm:nothing"])
def test_an_unknown_name_is_refused_with_the_names_there_are(operator, name):
    with pytest.raises(ValueError, match=r"must be one of \(.*'triton'.*\)|has no callable"):
        get_op(operator, name)


def test_an_unknown_operator_is_refused_with_those_there_are():
    for function in (lambda: get_op("conv", "torch"), lambda: names("conv"), lambda: ssd_kernels.explain("conv")):
        with pytest.raises(ValueError, match=r"operator must be one of \('ssd', .*'mixer_step'\), got 'conv'"):
            function()


@every_operator
def test_the_default_is_that_of_the_tensors_device(operator):
    name = default_name(DEVICE, operator)
    assert (name == "triton") == (DEVICE == "cuda")
    with torch.no_grad():
        assert torch.equal(
            getattr(ssd_kernels, operator)(**CALLS[operator]()), get_op(operator, name)(**CALLS[operator]())
        )
    with pytest.raises(NotImplementedError, match=r"no default \w+ implementation for device 'meta'; name one of \("):
        getattr(ssd_kernels, operator)(torch.empty(0, device="meta"))


@pytest.mark.skipif(DEVICE == "cuda", reason="tensors on a CPU are refused only where the interpreter is off")
def test_on_a_cpu_without_the_interpreter_every_triton_operator_says_what_to_do():
    code = """
from ssd_kernels import OPERATORS, explain, get_op
from tests.correctness.operator_calls import CALLS
for operator in OPERATORS:
    for call in (get_op(operator, "triton"), lambda **kw: explain(operator, implementation="triton", **kw)):
        try:
            call(**CALLS[operator]())
        except RuntimeError as error:
            print(operator, error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [operator for operator in OPERATORS for _ in range(2)]
    for line in lines:
        assert "must be on a GPU for 'triton', got device cpu; on a CPU take 'torch'" in line.replace(
            "chunked", "torch"
        )
        assert "set TRITON_INTERPRET=1" in line
