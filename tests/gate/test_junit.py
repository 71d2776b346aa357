from xml.etree import ElementTree

import pytest

from kernelgate import junit
from kernelgate.verdict import Outcome
from tests.gate.fakes import row

pytestmark = pytest.mark.correctness


def test_a_benchmark_has_plain_numbers():
    assert dict(junit.properties(row(outcome=Outcome.REGRESSED))) == {
        "gate_verdict": "REGRESSED",
        "gate_slowdown": "0.004",
        "gate_slowdown_lower": "-0.001",
        "gate_slowdown_upper": "0.009",
        "gate_margin": "0.01",
        "gate_detectable": "0.02",
        "gate_latency_s": "0.001234",
        "gate_latency_then_s": "0.00122908",
    }


def test_what_is_not_known_is_left_out():
    assert junit.properties(row(outcome=None)) == [("gate_latency_s", "0.001234")]
    endless = dict(junit.properties(row(slowdown=(0.0, float("-inf"), float("nan")))))
    assert "gate_slowdown_lower" not in endless
    assert "gate_slowdown_upper" not in endless


def test_the_file_says_of_each_benchmark_what_it_came_to(project):
    project.pytester.makepyfile(
        test_it="""
        import os

        import clock

        def test_gone(benchmark):
            benchmark(clock.work)

        def test_same(benchmark):
            benchmark(clock.work, 1e-3 / float(os.environ.get("SLOWDOWN", "1")))

        def test_work(benchmark):
            benchmark(clock.work)

        def test_ordinary():
            pass
        """
    )
    project.record()
    file = project.path / "test_it.py"
    file.write_text(file.read_text().replace("def test_gone", "def no_test"))
    project.environment(SLOWDOWN=2)
    project.compare("--junit-xml=junit.xml")
    tree = ElementTree.parse(project.path / "junit.xml")  # noqa: S314 -- our own file
    cases = {case.get("name"): case for case in tree.iter("testcase")}
    properties = {
        name: {each.get("name"): each.get("value") for each in case.iter("property")} for name, case in cases.items()
    }
    assert cases["test_work"].find("failure") is not None
    assert properties["test_work"]["gate_verdict"] == "REGRESSED"
    lower, slowdown, upper = (
        float(properties["test_work"][f"gate_slowdown{bound}"]) for bound in ("_lower", "", "_upper")
    )
    assert slowdown == pytest.approx(1.0, rel=1e-2)
    assert lower <= slowdown <= upper
    assert properties["test_same"]["gate_verdict"] == "SAME"
    assert properties["test_gone"] == {"gate_verdict": "MISSING"}
    assert properties["test_ordinary"] == {}
