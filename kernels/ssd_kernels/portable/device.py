"""What the configurations ask of a device, looked up once."""

import functools

import torch

# Bytes of shared memory that the scan's widest tiles take in three stages, and whatever else stands beside them.
_THREE_STAGES = 160_000


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run with a multiprocessor to themselves; 0 of a CPU."""
    return 0 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def holds_three_stages(device: torch.device) -> bool:
    """Whether a program may take enough shared memory; AMD's GPUs, which do not say, have less."""
    if device.type == "cpu":
        return False
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 0) >= _THREE_STAGES
