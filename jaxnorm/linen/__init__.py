"""Norms and dropout as `flax.linen` modules: drop-in for Flax's own, and the layers that Flax lacks."""

from jaxnorm.linen.batch_norm import BatchNorm
from jaxnorm.linen.batch_renorm import BatchRenorm
from jaxnorm.linen.decorrelated_batch_norm import DecorrelatedBatchNorm
from jaxnorm.linen.dropout import Dropout, GaussianDropout, UniformDropout
from jaxnorm.linen.gated_rms_norm import GatedRMSNorm
from jaxnorm.linen.ghost_batch_norm import GhostBatchNorm
from jaxnorm.linen.group_norm import GroupNorm
from jaxnorm.linen.instance_norm import InstanceNorm
from jaxnorm.linen.layer_norm import LayerNorm
from jaxnorm.linen.rms_norm import RMSNorm

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "DecorrelatedBatchNorm",
    "Dropout",
    "GatedRMSNorm",
    "GaussianDropout",
    "GhostBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "UniformDropout",
]
