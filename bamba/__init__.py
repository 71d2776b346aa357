"""The Bamba hybrid language model: Mamba-2 and attention layers in plain PyTorch, on any SSD implementation."""

from bamba.cache import Cache
from bamba.checkpoint import load_checkpoint, save_checkpoint
from bamba.config import PRESETS, BambaConfig
from bamba.generate import generate
from bamba.model import Bamba

__all__ = ["PRESETS", "Bamba", "BambaConfig", "Cache", "generate", "load_checkpoint", "save_checkpoint"]
