"""Norms and dropout as `flax.nnx` modules: drop-in for Flax's own, and the layers that Flax lacks."""

from jaxnorm.nnx.adaptive import ConcreteDropout, Standout
from jaxnorm.nnx.alpha_dropout import AlphaDropout
from jaxnorm.nnx.attention import DropKey, dot_product_attention
from jaxnorm.nnx.batch_instance_norm import BatchInstanceNorm
from jaxnorm.nnx.batch_norm import BatchNorm
from jaxnorm.nnx.batch_renorm import BatchRenorm
from jaxnorm.nnx.conditional_batch_norm import ConditionalBatchNorm
from jaxnorm.nnx.converting import convert, freeze, reset, unfreeze
from jaxnorm.nnx.cosine_norm import CosineNorm
from jaxnorm.nnx.cutout import Cutout
from jaxnorm.nnx.decorrelated_batch_norm import DecorrelatedBatchNorm
from jaxnorm.nnx.domain_batch_norm import DomainBatchNorm
from jaxnorm.nnx.drop_block import DropBlock
from jaxnorm.nnx.drop_connect import DropConnect, DropConnectDense, EmbeddingDropout
from jaxnorm.nnx.dropout import Dropout, GaussianDropout, GaussianNoise, UniformDropout
from jaxnorm.nnx.dropout_patterns import DropPath, HeadDropout, LockedDropout, SpatialDropout
from jaxnorm.nnx.dynamic_tanh import DynamicTanh
from jaxnorm.nnx.evonorm_b0 import EvoNormB0
from jaxnorm.nnx.evonorm_b1 import EvoNormB1
from jaxnorm.nnx.evonorm_b2 import EvoNormB2
from jaxnorm.nnx.evonorm_s0 import EvoNormS0
from jaxnorm.nnx.evonorm_s1 import EvoNormS1
from jaxnorm.nnx.evonorm_s2 import EvoNormS2
from jaxnorm.nnx.filter_response_norm import FilterResponseNorm
from jaxnorm.nnx.folding import fold
from jaxnorm.nnx.frozen_batch_norm import FrozenBatchNorm
from jaxnorm.nnx.gated_rms_norm import GatedRMSNorm
from jaxnorm.nnx.ghost_batch_norm import GhostBatchNorm
from jaxnorm.nnx.global_response_norm import GlobalResponseNorm
from jaxnorm.nnx.group_norm import GroupNorm
from jaxnorm.nnx.instance_norm import InstanceNorm
from jaxnorm.nnx.iterative_norm import IterativeNorm
from jaxnorm.nnx.joins import FractalJoin, ShakeDrop, ShakeShake, Swapout
from jaxnorm.nnx.layer_norm import LayerNorm
from jaxnorm.nnx.layer_scale import LayerScale
from jaxnorm.nnx.linting import lint
from jaxnorm.nnx.local_response_norm import LocalResponseNorm
from jaxnorm.nnx.lp_batch_norm import LpBatchNorm
from jaxnorm.nnx.max_pool_dropout import MaxPoolDropout
from jaxnorm.nnx.maxout import Maxout
from jaxnorm.nnx.mean_only_batch_norm import MeanOnlyBatchNorm
from jaxnorm.nnx.noisy_batch_norm import NoisyBatchNorm
from jaxnorm.nnx.noisy_linear import NoisyLinear
from jaxnorm.nnx.patch_dropout import PatchDropout
from jaxnorm.nnx.replacing import replace_layers
from jaxnorm.nnx.rms_norm import RMSNorm
from jaxnorm.nnx.scale_norm import ScaleNorm
from jaxnorm.nnx.spectral_norm import SpectralNorm
from jaxnorm.nnx.split_batch_norm import SplitBatchNorm
from jaxnorm.nnx.switchable_norm import SwitchableNorm
from jaxnorm.nnx.tracked_instance_norm import TrackedInstanceNorm
from jaxnorm.nnx.unit_norm import UnitNorm
from jaxnorm.nnx.variational import SparseVariationalDense, VariationalDense, VariationalDropout
from jaxnorm.nnx.virtual_batch_norm import VirtualBatchNorm
from jaxnorm.nnx.weight_norm import WeightNorm
from jaxnorm.nnx.zoneout import Zoneout

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
    "convert",
    "dot_product_attention",
    "fold",
    "freeze",
    "lint",
    "replace_layers",
    "reset",
    "unfreeze",
]
