"""The Bamba hybrid language model: Mamba-2 and attention layers in plain PyTorch, on any SSD implementation."""

from bamba.cache import Cache
from bamba.checkpoint import load_checkpoint, save_checkpoint
from bamba.config import PRESETS, BambaConfig
from bamba.generate import generate
from bamba.model import Bamba
from bamba.registry import get_model, model_names, register_model, register_with_transformers

__all__ = [
    "PRESETS",
    "Bamba",
    "BambaConfig",
    "Cache",
    "generate",
    "get_model",
    "load_checkpoint",
    "model_names",
    "register_model",
    "register_with_transformers",
    "save_checkpoint",
]
