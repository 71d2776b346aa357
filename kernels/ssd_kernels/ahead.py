"""What is worked out once in a process before its first kernel, begun while the caller makes its tensors.

Triton looks a kernel up in its cache on disk by, among others, a hash of all of itself, 400 MB: 0.3 s, of a first call
that takes 0.6 s when all it launches was compiled before. It needs nothing of the call, nor Python's lock. Another
0.1 s is Gluon's import, which other kernels than Hopper's do without.
"""

import os
import threading
from importlib import import_module

import torch
from triton.runtime.cache import triton_key


def begin(*for_hopper: str) -> None:
    """Have another thread hash Triton, where there is a GPU to launch kernels on; once in a process.

    Meanwhile import modules `for_hopper`, unless the current device is known to be another.
    """
    global _thread
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_hash, name="ssd_kernels: hash of Triton", daemon=True)
            _thread.start()
    if for_hopper and _may_be_hopper():
        for module in for_hopper:
            import_module(module)


def finish() -> None:
    """Wait for what was begun: who does not would begin anew."""
    if _thread is not None:
        _thread.join()


def _may_be_hopper() -> bool:
    """Whether it is not known that the current device is another: asked too early, torch would make a CUDA context."""
    if torch.version.hip is not None or torch.cuda.device_count() == 0:
        return False
    return not torch.cuda.is_initialized() or torch.cuda.get_device_capability() == (9, 0)


def _hash() -> None:
    # Counts GPUs without a CUDA context, which a process that forks must not have.
    if torch.cuda.device_count() > 0:
        triton_key()


_lock = threading.Lock()
_thread: threading.Thread | None = None
