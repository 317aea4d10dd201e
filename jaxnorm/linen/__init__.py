"""Norms and dropout as `flax.linen` modules: drop-in for Flax's own, and the layers that Flax lacks."""

from jaxnorm.linen.batch_norm import BatchNorm
from jaxnorm.linen.batch_renorm import BatchRenorm
from jaxnorm.linen.conditional_batch_norm import ConditionalBatchNorm
from jaxnorm.linen.decorrelated_batch_norm import DecorrelatedBatchNorm
from jaxnorm.linen.domain_batch_norm import DomainBatchNorm
from jaxnorm.linen.dropout import Dropout, GaussianDropout, UniformDropout
from jaxnorm.linen.gated_rms_norm import GatedRMSNorm
from jaxnorm.linen.ghost_batch_norm import GhostBatchNorm
from jaxnorm.linen.group_norm import GroupNorm
from jaxnorm.linen.instance_norm import InstanceNorm
from jaxnorm.linen.layer_norm import LayerNorm
from jaxnorm.linen.rms_norm import RMSNorm
from jaxnorm.linen.split_batch_norm import SplitBatchNorm

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "ConditionalBatchNorm",
    "DecorrelatedBatchNorm",
    "DomainBatchNorm",
    "Dropout",
    "GatedRMSNorm",
    "GaussianDropout",
    "GhostBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "SplitBatchNorm",
    "UniformDropout",
]
