"""What Triton works out once in a process before its first kernel, begun while the caller makes its tensors.

Triton looks a kernel up in its cache on disk by, among others, a hash of all of itself, 400 MB: 0.3 s, of a first call
that takes 0.6 s when all it launches was compiled before. It needs nothing of the call, nor Python's lock.
"""

import os
import threading

import torch
from triton.runtime.cache import triton_key


def begin() -> None:
    """Have another thread hash Triton, where there is a GPU to launch kernels on; once in a process."""
    global _thread
    with _lock:
        if _thread is None and os.environ.get("TRITON_INTERPRET") != "1":
            _thread = threading.Thread(target=_hash, name="ssd_kernels: hash of Triton", daemon=True)
            _thread.start()


def finish() -> None:
    """Wait for what was begun: who does not would begin anew."""
    if _thread is not None:
        _thread.join()


def _hash() -> None:
    # Counts GPUs without a CUDA context, which a process that forks must not have.
    if torch.cuda.device_count() > 0:
        triton_key()


_lock = threading.Lock()
_thread: threading.Thread | None = None
