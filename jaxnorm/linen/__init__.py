"""Norms and dropout as `flax.linen` modules: drop-in for Flax's own, and the layers that Flax lacks."""

from jaxnorm.linen.batch_norm import BatchNorm
from jaxnorm.linen.batch_renorm import BatchRenorm
from jaxnorm.linen.conditional_batch_norm import ConditionalBatchNorm
from jaxnorm.linen.cosine_norm import CosineNorm
from jaxnorm.linen.decorrelated_batch_norm import DecorrelatedBatchNorm
from jaxnorm.linen.domain_batch_norm import DomainBatchNorm
from jaxnorm.linen.dropout import Dropout, GaussianDropout, UniformDropout
from jaxnorm.linen.dynamic_tanh import DynamicTanh
from jaxnorm.linen.filter_response_norm import FilterResponseNorm
from jaxnorm.linen.gated_rms_norm import GatedRMSNorm
from jaxnorm.linen.ghost_batch_norm import GhostBatchNorm
from jaxnorm.linen.global_response_norm import GlobalResponseNorm
from jaxnorm.linen.group_norm import GroupNorm
from jaxnorm.linen.instance_norm import InstanceNorm
from jaxnorm.linen.layer_norm import LayerNorm
from jaxnorm.linen.layer_scale import LayerScale
from jaxnorm.linen.local_response_norm import LocalResponseNorm
from jaxnorm.linen.rms_norm import RMSNorm
from jaxnorm.linen.scale_norm import ScaleNorm
from jaxnorm.linen.spectral_norm import SpectralNorm
from jaxnorm.linen.split_batch_norm import SplitBatchNorm
from jaxnorm.linen.unit_norm import UnitNorm
from jaxnorm.linen.weight_norm import WeightNorm

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "ConditionalBatchNorm",
    "CosineNorm",
    "DecorrelatedBatchNorm",
    "DomainBatchNorm",
    "Dropout",
    "DynamicTanh",
    "FilterResponseNorm",
    "GatedRMSNorm",
    "GaussianDropout",
    "GhostBatchNorm",
    "GlobalResponseNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LayerScale",
    "LocalResponseNorm",
    "RMSNorm",
    "ScaleNorm",
    "SpectralNorm",
    "SplitBatchNorm",
    "UniformDropout",
    "UnitNorm",
    "WeightNorm",
]
