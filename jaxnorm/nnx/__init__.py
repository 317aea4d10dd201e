"""Norms and dropout as `flax.nnx` modules: drop-in for Flax's own, and the layers that Flax lacks."""

from jaxnorm.nnx.batch_norm import BatchNorm
from jaxnorm.nnx.batch_renorm import BatchRenorm
from jaxnorm.nnx.conditional_batch_norm import ConditionalBatchNorm
from jaxnorm.nnx.cosine_norm import CosineNorm
from jaxnorm.nnx.decorrelated_batch_norm import DecorrelatedBatchNorm
from jaxnorm.nnx.domain_batch_norm import DomainBatchNorm
from jaxnorm.nnx.dropout import Dropout, GaussianDropout, UniformDropout
from jaxnorm.nnx.dynamic_tanh import DynamicTanh
from jaxnorm.nnx.filter_response_norm import FilterResponseNorm
from jaxnorm.nnx.gated_rms_norm import GatedRMSNorm
from jaxnorm.nnx.ghost_batch_norm import GhostBatchNorm
from jaxnorm.nnx.global_response_norm import GlobalResponseNorm
from jaxnorm.nnx.group_norm import GroupNorm
from jaxnorm.nnx.instance_norm import InstanceNorm
from jaxnorm.nnx.layer_norm import LayerNorm
from jaxnorm.nnx.layer_scale import LayerScale
from jaxnorm.nnx.local_response_norm import LocalResponseNorm
from jaxnorm.nnx.rms_norm import RMSNorm
from jaxnorm.nnx.scale_norm import ScaleNorm
from jaxnorm.nnx.spectral_norm import SpectralNorm
from jaxnorm.nnx.split_batch_norm import SplitBatchNorm
from jaxnorm.nnx.unit_norm import UnitNorm
from jaxnorm.nnx.weight_norm import WeightNorm

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
