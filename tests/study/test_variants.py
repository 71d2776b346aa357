"""A variant of the ablation changes what its name says, and nothing is left of it afterwards."""

import pytest

from ssd_kernels.hopper import configs
from ssd_kernels.interface import Sizes
from tests.perf.problems import ScanProblem
from tests.study import variants
from tests.study.variants import VARIANTS

pytestmark = pytest.mark.correctness

CONSTANTS = ("EARLY_START", "GROUP_RANGE", "TILE_RANK")


def decided(problem):
    """All that decides how the Hopper scan runs a problem."""
    sizes = Sizes(batch=problem.batch, seqlen=problem.seqlen, nheads=128, headdim=64, ngroups=1, d_state=128)
    constants = [getattr(configs, name) for name in CONSTANTS]
    return configs.scan_config(sizes, None, 132), configs.prepare_config(), *constants


@pytest.mark.parametrize("name", [name for name, each in VARIANTS.items() if each.scan == "hopper"])
@pytest.mark.parametrize("shape", [(1, 1024), (1, 8192), (8, 2048)])
def test_a_variant_changes_one_thing_and_only_meanwhile(shape, name, monkeypatch):
    monkeypatch.setattr(variants, "multiprocessors", lambda _: 132)
    problem = ScanProblem(ssm="", batch=shape[0], seqlen=shape[1])
    before = decided(problem)
    with VARIANTS[name].change(problem):
        changed = [was != now for was, now in zip(before, decided(problem), strict=True)]
    unchanged = name == variants.SHIPPED or VARIANTS[name].decay != 1
    assert sum(changed) == (0 if unchanged else 1)
    assert decided(problem) == before


def test_of_each_idea_some_shape_shows_what_it_buys(monkeypatch):
    monkeypatch.setattr(variants, "multiprocessors", lambda _: 132)
    problems = [ScanProblem(ssm="", batch=batch, seqlen=seqlen) for batch, seqlen in ((1, 1024), (1, 8192), (8, 2048))]
    for start in (("scan put",), ("TMA",), ("one part", "two parts"), ("one segment", "two segments")):
        shown = 0
        for each in (variant for name, variant in VARIANTS.items() if name.startswith(start)):
            for problem in problems:
                try:
                    with each.change(problem):
                        shown += 1
                except pytest.skip.Exception:
                    pass
        assert shown, start
