"""Networks without batch norm, for inference: each norm goes into the weights of the layer before or after it.

Batch norm in inference is one affine map of each channel, and so is part of any dense layer or convolution that it stands beside.
Here are the functions for bare arrays; `jaxnorm.linen.fold` and `jaxnorm.nnx.fold` fold whole models, and report what they did.

>>> import jax, jax.numpy as jnp, jaxnorm
>>> from jaxnorm.folding import fold_dense
>>> params, state = jaxnorm.init_batch_norm(3)
>>> state = jaxnorm.RunningStats(mean=jnp.array([1.0, 2.0, 3.0]), var=jnp.array([4.0, 1.0, 0.25]))
>>> x, kernel = jnp.ones((2, 8)), jax.random.normal(jax.random.key(0), (8, 3))
>>> y, _ = jaxnorm.batch_norm(params, state, x @ kernel, train=False)
>>> folded, bias = fold_dense(params, state, kernel, None)
>>> bool(jnp.allclose(x @ folded + bias, y, atol=1e-5))
True
"""

from jaxnorm.folding.affine import as_affine, identity_batch_norm
from jaxnorm.folding.layers import fold_conv, fold_dense
from jaxnorm.folding.report import FoldReport, NormFold

__all__ = ["FoldReport", "NormFold", "as_affine", "fold_conv", "fold_dense", "identity_batch_norm"]
