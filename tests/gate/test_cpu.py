import pytest
import torch

from kernelgate import cpu

pytestmark = pytest.mark.correctness


def peak_and_workspace(call):
    metrics = cpu.memory(call)
    return metrics["peak_bytes"].worst, metrics["workspace_bytes"].worst


def test_a_result_is_peak_and_not_workspace():
    assert peak_and_workspace(lambda: torch.empty(4096, dtype=torch.uint8)) == (4096, 0)


def test_buffers_count_while_they_live_together():
    def call():
        first, second = torch.empty(1000, dtype=torch.uint8), torch.empty(500, dtype=torch.uint8)
        del first, second
        return torch.empty(200, dtype=torch.uint8)

    assert peak_and_workspace(call) == (1500, 1300)


def test_buffers_that_follow_each_other_do_not_add_up():
    def call():
        for _ in range(3):
            torch.empty(1000, dtype=torch.uint8)

    assert peak_and_workspace(call) == (1000, 1000)


def test_repeated_measurements_agree_to_the_byte():
    left, right = torch.randn(64, 64), torch.randn(64, 64)
    assert len({peak_and_workspace(lambda: torch.softmax(left @ right, -1)) for _ in range(5)}) == 1


def test_an_input_freed_during_the_call_does_not_hide_what_it_allocates():
    inputs = [torch.empty(10_000, dtype=torch.uint8)]

    def call():
        inputs.clear()
        return torch.empty(100, dtype=torch.uint8)

    assert peak_and_workspace(call) == (100, 0)


def test_a_block_at_an_address_that_another_profile_has_seen_is_the_callers():
    tensors = []
    for _ in range(20):
        peak_and_workspace(lambda: tensors.append(torch.empty(10_000, dtype=torch.uint8)))
        tensors.clear()
        tensors.append(torch.empty(10_000, dtype=torch.uint8))  # mostly at the same address
        assert peak_and_workspace(tensors.clear) == (0, 0)
