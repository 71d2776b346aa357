"""What the choice of kernels and configurations asks of a device, looked up once."""

import functools

import torch

# Bytes of shared memory that the portable scan's widest tiles take in three stages, and whatever else stands there.
_THREE_STAGES = 160_000


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether a device is an NVIDIA GPU of compute capability 9.0: the kernels use instructions of no other."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) == (9, 0)


@functools.cache
def starts_early(device: torch.device) -> bool:
    """Whether a kernel may begin before the one before it has ended: on NVIDIA's GPUs of capability 9.0 and above."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


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
