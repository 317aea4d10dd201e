"""Norms and dropout as `flax.linen` modules: drop-in for Flax's own, and the layers that Flax lacks."""

from jaxnorm.linen.batch_norm import BatchNorm
from jaxnorm.linen.batch_renorm import BatchRenorm
from jaxnorm.linen.decorrelated_batch_norm import DecorrelatedBatchNorm
from jaxnorm.linen.dropout import Dropout, GaussianDropout, UniformDropout
from jaxnorm.linen.layer_norm import LayerNorm

__all__ = ["BatchNorm", "BatchRenorm", "DecorrelatedBatchNorm", "Dropout", "GaussianDropout", "LayerNorm", "UniformDropout"]
