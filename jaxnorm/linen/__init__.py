"""Norms and dropout as `flax.linen` modules: drop-in for Flax's own, and the layers that Flax lacks."""

from jaxnorm.linen.adaptive import ConcreteDropout, Standout
from jaxnorm.linen.alpha_dropout import AlphaDropout
from jaxnorm.linen.attention import DropKey, dot_product_attention
from jaxnorm.linen.batch_instance_norm import BatchInstanceNorm
from jaxnorm.linen.batch_norm import BatchNorm
from jaxnorm.linen.batch_renorm import BatchRenorm
from jaxnorm.linen.conditional_batch_norm import ConditionalBatchNorm
from jaxnorm.linen.converting import converting, freezing, reset
from jaxnorm.linen.cosine_norm import CosineNorm
from jaxnorm.linen.cutout import Cutout
from jaxnorm.linen.decorrelated_batch_norm import DecorrelatedBatchNorm
from jaxnorm.linen.domain_batch_norm import DomainBatchNorm
from jaxnorm.linen.drop_block import DropBlock
from jaxnorm.linen.drop_connect import DropConnect, DropConnectDense, EmbeddingDropout
from jaxnorm.linen.dropout import Dropout, GaussianDropout, GaussianNoise, UniformDropout
from jaxnorm.linen.dropout_patterns import DropPath, HeadDropout, LockedDropout, SpatialDropout
from jaxnorm.linen.dynamic_tanh import DynamicTanh
from jaxnorm.linen.evonorm_b0 import EvoNormB0
from jaxnorm.linen.evonorm_b1 import EvoNormB1
from jaxnorm.linen.evonorm_b2 import EvoNormB2
from jaxnorm.linen.evonorm_s0 import EvoNormS0
from jaxnorm.linen.evonorm_s1 import EvoNormS1
from jaxnorm.linen.evonorm_s2 import EvoNormS2
from jaxnorm.linen.filter_response_norm import FilterResponseNorm
from jaxnorm.linen.folding import fold
from jaxnorm.linen.frozen_batch_norm import FrozenBatchNorm
from jaxnorm.linen.gated_rms_norm import GatedRMSNorm
from jaxnorm.linen.ghost_batch_norm import GhostBatchNorm
from jaxnorm.linen.global_response_norm import GlobalResponseNorm
from jaxnorm.linen.group_norm import GroupNorm
from jaxnorm.linen.instance_norm import InstanceNorm
from jaxnorm.linen.iterative_norm import IterativeNorm
from jaxnorm.linen.joins import FractalJoin, ShakeDrop, ShakeShake, Swapout
from jaxnorm.linen.layer_norm import LayerNorm
from jaxnorm.linen.layer_scale import LayerScale
from jaxnorm.linen.linting import lint
from jaxnorm.linen.local_response_norm import LocalResponseNorm
from jaxnorm.linen.lp_batch_norm import LpBatchNorm
from jaxnorm.linen.max_pool_dropout import MaxPoolDropout
from jaxnorm.linen.maxout import Maxout
from jaxnorm.linen.mean_only_batch_norm import MeanOnlyBatchNorm
from jaxnorm.linen.noisy_batch_norm import NoisyBatchNorm
from jaxnorm.linen.noisy_linear import NoisyLinear
from jaxnorm.linen.patch_dropout import PatchDropout
from jaxnorm.linen.replacing import replacing_layers
from jaxnorm.linen.rms_norm import RMSNorm
from jaxnorm.linen.scale_norm import ScaleNorm
from jaxnorm.linen.spectral_norm import SpectralNorm
from jaxnorm.linen.split_batch_norm import SplitBatchNorm
from jaxnorm.linen.switchable_norm import SwitchableNorm
from jaxnorm.linen.tracked_instance_norm import TrackedInstanceNorm
from jaxnorm.linen.unit_norm import UnitNorm
from jaxnorm.linen.variational import SparseVariationalDense, VariationalDense, VariationalDropout
from jaxnorm.linen.virtual_batch_norm import VirtualBatchNorm
from jaxnorm.linen.weight_norm import WeightNorm
from jaxnorm.linen.zoneout import Zoneout

__all__ = [
    "AlphaDropout",
    "BatchInstanceNorm",
    "BatchNorm",
    "BatchRenorm",
    "ConcreteDropout",
    "ConditionalBatchNorm",
    "CosineNorm",
    "Cutout",
    "DecorrelatedBatchNorm",
    "DomainBatchNorm",
    "DropBlock",
    "DropConnect",
    "DropConnectDense",
    "DropKey",
    "DropPath",
    "Dropout",
    "DynamicTanh",
    "EmbeddingDropout",
    "EvoNormB0",
    "EvoNormB1",
    "EvoNormB2",
    "EvoNormS0",
    "EvoNormS1",
    "EvoNormS2",
    "FilterResponseNorm",
    "FractalJoin",
    "FrozenBatchNorm",
    "GatedRMSNorm",
    "GaussianDropout",
    "GaussianNoise",
    "GhostBatchNorm",
    "GlobalResponseNorm",
    "GroupNorm",
    "HeadDropout",
    "InstanceNorm",
    "IterativeNorm",
    "LayerNorm",
    "LayerScale",
    "LocalResponseNorm",
    "LockedDropout",
    "LpBatchNorm",
    "MaxPoolDropout",
    "Maxout",
    "MeanOnlyBatchNorm",
    "NoisyBatchNorm",
    "NoisyLinear",
    "PatchDropout",
    "RMSNorm",
    "ScaleNorm",
    "ShakeDrop",
    "ShakeShake",
    "SparseVariationalDense",
    "SpatialDropout",
    "SpectralNorm",
    "SplitBatchNorm",
    "Standout",
    "Swapout",
    "SwitchableNorm",
    "TrackedInstanceNorm",
    "UniformDropout",
    "UnitNorm",
    "VariationalDense",
    "VariationalDropout",
    "VirtualBatchNorm",
    "WeightNorm",
    "Zoneout",
    "converting",
    "dot_product_attention",
    "fold",
    "freezing",
    "lint",
    "replacing_layers",
    "reset",
]
