"""Wiring only: hypothesis profiles, Triton's interpreter where there is no GPU, `--ssd`, pytest's own test helper."""

import os

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase

pytest_plugins = ["pytester", "tests.ssd_option"]

if not torch.cuda.is_available():
    # Read by Triton when a kernel is decorated, so it must be set before the first kernel module is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(workers)))  # each would take all cores

_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("dev", max_examples=20, **_common)
settings.register_profile("ci", derandomize=True, database=None, max_examples=15, **_common)
# For machines that are paid by the minute: a failure is shown as it was drawn.
settings.register_profile(
    "unshrunk", derandomize=True, database=None, max_examples=15,
    phases=(Phase.explicit, Phase.generate), **_common,
)  # fmt: skip
# Fresh examples every time; what fails is kept, and tried first the next time.
_kept = DirectoryBasedExampleDatabase(os.environ.get("HYPOTHESIS_DATABASE", ".hypothesis/examples"))
settings.register_profile(
    "nightly", max_examples=200, phases=tuple(Phase), derandomize=False, database=_kept, **_common
)  # hypothesis derandomises by default where CI is set
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
