"""Batch norm and dropout as `flax.linen` modules: drop-in for Flax's own, and the noises that Flax lacks."""

from jaxnorm.linen.batch_norm import BatchNorm
from jaxnorm.linen.dropout import Dropout, GaussianDropout, UniformDropout

__all__ = ["BatchNorm", "Dropout", "GaussianDropout", "UniformDropout"]
