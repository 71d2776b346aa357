"""Tensor parallel: the heads, the MLPs' widths and the vocabulary of one model among several devices.

The plan is torch's own, a style for each module by its name, laid over a device mesh. Parameters become plain tensors
of the rank's part rather than DTensors, and the styles hook no module: a decode step's operators read plain weights,
take the norm before and the activation after a projection with them, and the residual joins after the sum over ranks.
Source: Shoeybi et al., "Megatron-LM" (arXiv:1909.08053); torch.distributed.tensor.parallel.
"""

from collections.abc import Mapping

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from bamba.mixer import Mamba2
from bamba.model import Bamba
from bamba.parallel.plan import Cut, Cuts, local_config, plan
from bamba.parallel.ranks import Ranks


def tensor_parallel(model: Bamba, mesh: DeviceMesh) -> Cuts:
    """Leave this rank's part of a model, in place.

    The model then is called as any other, by all ranks alike with the same tokens, and each gets the same logits;
    caches, generation and decode graphs are as before, a cache being that of the rank's heads. For inference only.

    Args:
        model: the whole model, with the same weights on every rank, or on "meta".
        mesh: of one dimension.

    Returns:
        What was left of each parameter, for whoever fills them.

    Raises:
        ValueError: a mesh of several dimensions, a model that is cut or compiled already, or heads that do not divide.
    """
    if mesh.ndim != 1:
        raise ValueError(f"mesh must have one dimension, got {mesh.ndim}")
    model.expect_whole()
    if model.is_compiled:
        raise ValueError("model must not be compiled: what ranks add up the compiler does not see")
    config, size = model.config, mesh.size()
    local = local_config(config, size)
    cuts = plan(config, mesh.get_local_rank(), size)
    parallelize_module(model, mesh, {module: _Part(parts) for module, parts in cuts.items()})
    if config.tie_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    for module in model.modules():
        if isinstance(module, Mamba2):
            module.config = local
    model.config = model.model.config = local
    model.ranks = Ranks(
        mesh.get_group(), vocab_size=config.vocab_size, norm_groups=config.ssm_norm_groups, d_model=config.d_model
    )
    model.requires_grad_(False)
    model.choose_operators()
    return cuts


class _Part(ParallelStyle):
    """Leaves a module the rank's part of its parameters."""

    def __init__(self, cuts: Mapping[str, Cut]) -> None:
        super().__init__()
        self.cuts = cuts

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, cut in self.cuts.items():
            full = getattr(module, name)
            setattr(module, name, nn.Parameter(cut.of(full.detach())))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        return module
