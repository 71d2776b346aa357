"""Wiring only: hypothesis profiles, Triton's interpreter where there is no GPU, pytest's own test helper."""

import os

import torch
from hypothesis import HealthCheck, Phase, settings

pytest_plugins = ["pytester"]

if not torch.cuda.is_available():
    # Read by Triton when a kernel is decorated, so it must be set before the first kernel module is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("dev", max_examples=20, **_common)
settings.register_profile("ci", derandomize=True, database=None, max_examples=15, **_common)
settings.register_profile("nightly", max_examples=200, phases=tuple(Phase), **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
