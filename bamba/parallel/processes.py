"""The group of processes that torchrun starts: one a device, ended together when one of them fails.

A process that ends with an error, or is killed, is seen by torchrun at once, which ends the others and says which it
was and why. One that hangs is seen by the others, whose collectives give up after :data:`PATIENCE`, or not: those of a
replayed CUDA graph nobody watches.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

PATIENCE = timedelta(seconds=45)
# What torch does by default and nobody here wants. Source: torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp.
NCCL = {
    # Once a collective has given up, four times as long is left for a record of the last ones, 60 s by default.
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "2000",
    # Messages from a rank to the next wait for one another: said at the first one, and no news.
    "TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING": "false",
}


@contextmanager
def ranks(device_type: str, *, patience: timedelta = PATIENCE) -> Iterator[DeviceMesh]:
    """A mesh of all processes of this torchrun, each with the device of its local rank.

    Settings of :data:`NCCL` that the environment has stay as they are.

    Args:
        device_type: "cuda" (NCCL) or "cpu" (gloo).
        patience: how long a collective waits for the others.

    Raises:
        ValueError: not started by torchrun, or fewer GPUs than processes on this machine.
    """
    if "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "WORLD_SIZE must be set, as by `torchrun --nproc-per-node N -m bamba …`: a process for each device"
        )
    size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    device = None
    if device_type == "cuda":
        for name, value in NCCL.items():
            os.environ.setdefault(name, value)
        if local_rank >= torch.cuda.device_count():
            raise ValueError(f"device: expected a GPU for each process, got {torch.cuda.device_count()} GPUs")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=patience, device_id=device)
    reasons = get_error_handler()  # where torchrun looks for why a process has failed
    reasons.initialize()
    try:
        yield init_device_mesh(device_type, (size,))
    except Exception as error:
        reasons.record_exception(error)
        raise
    # Not after an error: it would wait for ranks that wait for this one; torchrun ends them all.
    dist.destroy_process_group()
