import pytest

from kernelgate.difference import compare_kernels, difference
from tests.gate.fakes import KERNEL, row

pytestmark = pytest.mark.correctness

OTHER = {**KERNEL, "binary": "bb"}


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        ([], [], ["no Triton kernel involved"]),
        ([KERNEL], [KERNEL], ["same Triton binaries: look at the host, a library or the machine"]),
        (
            [KERNEL],
            [{**KERNEL, "launches": 2}],
            ["same Triton binaries, launched another number of times:", "  _scan_kernel: launches 1 → 2"],
        ),
        (
            [KERNEL],
            [{**OTHER, "n_regs": 255, "n_spills": 8, "shared": 2048, "num_warps": 8, "num_stages": 3}],
            [
                "Triton binaries changed:",
                "  _scan_kernel: other binary, registers 128 → 255, spills 0 → 8, shared memory 1024 → 2048, "
                "warps 4 → 8, stages 2 → 3",
            ],
        ),
        (
            [KERNEL, {**KERNEL, "name": "_a"}],
            [OTHER, {**OTHER, "name": "_a"}],
            ["Triton binaries changed:", "  other binary, same resources: _a, _scan_kernel"],
        ),
        ([], [KERNEL], ["Triton binaries changed:", "  _scan_kernel: new kernel, launches 1"]),
        ([KERNEL], [], ["Triton binaries changed:", "  _scan_kernel: no longer launched"]),
        (
            [{key: KERNEL[key] for key in ("name", "binary", "launches")}],
            [{**OTHER, "launches": 1}],
            [
                "Triton binaries changed:",
                "  _scan_kernel: other binary, registers ? → 128, spills ? → 0, shared memory ? → 1024, "
                "warps ? → 4, stages ? → 2",
            ],
        ),
    ],
)
def test_it_says_which_kernels_changed_and_what_of_them(before, now, lines):
    assert compare_kernels(before, now).lines == lines


def test_specialisations_of_one_kernel_meet_their_likes():
    small, large = {**KERNEL, "binary": "s", "n_regs": 32}, {**KERNEL, "binary": "l", "n_regs": 200}
    small_now, large_now = {**small, "binary": "s2"}, {**large, "binary": "l2", "n_regs": 210}
    changes = compare_kernels([KERNEL, large, small], [small_now, KERNEL, large_now]).changes
    assert [(change.before, change.now, dict(change.changed)) for change in changes] == [
        ("s", "s2", {}),
        ("l", "l2", {"n_regs": (200, 210)}),
    ]


def test_kernels_that_were_never_looked_at_are_not_compared():
    for side in ("details", "entry"):
        measured = row()
        del (measured.details if side == "details" else measured.entry.details)["kernels"]
        assert difference(measured) is None
    assert difference(row(outcome=None)) is None
