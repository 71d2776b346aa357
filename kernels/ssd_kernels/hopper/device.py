"""What the Hopper kernels ask of a device, looked up once."""

import functools

import torch


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether a device is an NVIDIA GPU of compute capability 9.0: the kernels use instructions of no other."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) == (9, 0)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs of the scan run at once."""
    return torch.cuda.get_device_properties(device).multi_processor_count
