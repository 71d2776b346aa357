"""One Mamba-2 mixer of Bamba-9B: norm, projections, convolution, scan, gated norm, residual."""

import pytest
import torch

from bamba.config import PRESETS
from bamba.positions import locate
from tests.perf.problems import (
    DEVICE,
    DTYPE,
    MIXER_ERROR,
    MIXER_TOKENS,
    ON_GPU,
    ScanProblem,
    relative_error,
    with_exact_twin,
)

pytestmark = [pytest.mark.perf, pytest.mark.benchmark(group="mixer")]

# One mixer at full width; the rest of the model is as small as it gets.
CONFIG = PRESETS["bamba-9b"].replace(num_layers=1, attn_layers=(), vocab_size=1, d_mlp=1)


@pytest.fixture(scope="module")
def models():
    return with_exact_twin(CONFIG)


@pytest.mark.parametrize("tokens", [pytest.param(MIXER_TOKENS, id=f"bamba-9b-1x{MIXER_TOKENS}")])
def test_mixer(benchmark, models, tokens):
    model = models[0]
    mixer, exact_mixer = (each.model.layers[0].mamba for each in models)
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(1, tokens, CONFIG.d_model, generator=generator, device=DEVICE, dtype=DTYPE)
    positions = locate(torch.arange(tokens, device=DEVICE), CONFIG, DTYPE)
    weights = mixer.in_proj.weight.numel() + mixer.out_proj.weight.numel()
    scan = ScanProblem(ssm="", batch=1, seqlen=tokens)
    with torch.inference_mode():
        norms = [each.model.layers[0].input_layernorm for each in models]
        exact = exact_mixer(hidden.double(), norms[1], positions, None)
        benchmark.declare(
            tokens=tokens,
            bytes=weights * DTYPE.itemsize + 2 * hidden.nbytes,
            flops=2 * weights * tokens + scan.flops,
            device=DEVICE,
            error=lambda out: relative_error(out, exact),
            error_budget=MIXER_ERROR,
            asked=model.ssm,
            ran=model.ssm_in_use,
        )
        # On a GPU the mixer may add to what it is given: a copy.
        given = hidden.clone if ON_GPU else lambda: hidden
        benchmark(lambda: mixer(given(), norms[0], positions, None))
