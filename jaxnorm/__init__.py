"""Batch norm and dropout for JAX: pure functions of `(key, params, state, x)`.

`jaxnorm.linen` and `jaxnorm.nnx` wrap them for Flax, `jaxnorm.training` trains with them.

Every transformation of jax takes them but `jax.experimental.jet`, which has no rules for custom derivatives, checkpoints and
barriers (nor for `jax.nn.relu`). For derivatives of high order along a line nest `jax.jvp`.
"""

from jaxnorm._dropout.elementwise import classic_dropout, dropout, gaussian_dropout, uniform_dropout, weight_scaled
from jaxnorm._norm.batch import batch_norm, init_batch_norm
from jaxnorm._norm.ghost import ghost_batch_norm, init_ghost_batch_norm
from jaxnorm._norm.group import group_norm, init_group_norm, init_instance_norm, instance_norm
from jaxnorm._norm.kinds import (
    conditional_batch_norm,
    domain_batch_norm,
    init_conditional_batch_norm,
    init_domain_batch_norm,
    init_split_batch_norm,
    split_batch_norm,
)
from jaxnorm._norm.renorm import batch_renorm, init_batch_renorm
from jaxnorm._norm.rms import gated_rms_norm, init_gated_rms_norm, init_rms_norm, rms_norm
from jaxnorm._norm.sample import init_layer_norm, layer_norm
from jaxnorm._norm.whitening import decorrelated_batch_norm, init_decorrelated_batch_norm
from jaxnorm._types import AffineParams, CovarianceStats, RenormStats, RunningStats

__version__ = "0.1.0"

__all__ = [
    "AffineParams",
    "CovarianceStats",
    "RenormStats",
    "RunningStats",
    "batch_norm",
    "batch_renorm",
    "classic_dropout",
    "conditional_batch_norm",
    "decorrelated_batch_norm",
    "domain_batch_norm",
    "dropout",
    "gated_rms_norm",
    "gaussian_dropout",
    "ghost_batch_norm",
    "group_norm",
    "init_batch_norm",
    "init_batch_renorm",
    "init_conditional_batch_norm",
    "init_decorrelated_batch_norm",
    "init_domain_batch_norm",
    "init_gated_rms_norm",
    "init_ghost_batch_norm",
    "init_group_norm",
    "init_instance_norm",
    "init_layer_norm",
    "init_rms_norm",
    "init_split_batch_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
    "split_batch_norm",
    "uniform_dropout",
    "weight_scaled",
]
