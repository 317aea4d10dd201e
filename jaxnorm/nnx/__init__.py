"""Norms and dropout as `flax.nnx` modules: drop-in for Flax's own, and the layers that Flax lacks."""

from jaxnorm.nnx.batch_norm import BatchNorm
from jaxnorm.nnx.batch_renorm import BatchRenorm
from jaxnorm.nnx.conditional_batch_norm import ConditionalBatchNorm
from jaxnorm.nnx.decorrelated_batch_norm import DecorrelatedBatchNorm
from jaxnorm.nnx.domain_batch_norm import DomainBatchNorm
from jaxnorm.nnx.dropout import Dropout, GaussianDropout, UniformDropout
from jaxnorm.nnx.gated_rms_norm import GatedRMSNorm
from jaxnorm.nnx.ghost_batch_norm import GhostBatchNorm
from jaxnorm.nnx.group_norm import GroupNorm
from jaxnorm.nnx.instance_norm import InstanceNorm
from jaxnorm.nnx.layer_norm import LayerNorm
from jaxnorm.nnx.rms_norm import RMSNorm
from jaxnorm.nnx.split_batch_norm import SplitBatchNorm

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
