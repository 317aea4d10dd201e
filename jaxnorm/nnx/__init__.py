"""Batch norm and dropout as `flax.nnx` modules: drop-in for Flax's own, and the noises that Flax lacks."""

from jaxnorm.nnx.batch_norm import BatchNorm
from jaxnorm.nnx.dropout import Dropout, GaussianDropout, UniformDropout

__all__ = ["BatchNorm", "Dropout", "GaussianDropout", "UniformDropout"]
