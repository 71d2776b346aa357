"""Without a GPU, Triton's interpreter runs the kernels: what they compute can be gated, how fast they are cannot."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before its module is imported
