"""Norms and dropout as `flax.nnx` modules: drop-in for Flax's own, and the layers that Flax lacks."""

from jaxnorm.nnx.batch_norm import BatchNorm
from jaxnorm.nnx.batch_renorm import BatchRenorm
from jaxnorm.nnx.decorrelated_batch_norm import DecorrelatedBatchNorm
from jaxnorm.nnx.dropout import Dropout, GaussianDropout, UniformDropout
from jaxnorm.nnx.layer_norm import LayerNorm

__all__ = ["BatchNorm", "BatchRenorm", "DecorrelatedBatchNorm", "Dropout", "GaussianDropout", "LayerNorm", "UniformDropout"]
