"""Words as :mod:`bamba.parallel.words` has them, made and read by torch."""

import torch


def as_words(values, call):
    """fp32 values, each below the number of its call."""
    return (values.float().view(torch.int32).long() & 0xFFFFFFFF) | (call << 32)


def values_of(words):
    """What :func:`as_words` was given."""
    return (words & 0xFFFFFFFF).int().view(torch.float32)
