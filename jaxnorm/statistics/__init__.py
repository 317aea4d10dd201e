"""Running statistics after training: estimated anew, for other data, blended, corrected, pooled.

With the weights as they are, the statistics of a whole data set take the place of averages over the last steps: of a function, a
linen or an nnx model, with the noise off, in one call.

>>> import jax
>>> from flax import nnx
>>> from jaxnorm.nnx import BatchNorm, Dropout
>>> from jaxnorm.statistics import nnx_update, precise_stats
>>> rngs = nnx.Rngs(0)
>>> net = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), BatchNorm(8, rngs=rngs), nnx.relu, Dropout(0.5, rngs=rngs))
>>> batches = jax.random.normal(jax.random.key(0), (10, 32, 3))
>>> nnx.update(net, precise_stats(nnx_update(net), nnx.state(net, nnx.BatchStat), batches))

After averaging the weights it is called with the averaged ones, for which no running statistics were ever taken:

>>> import jax.numpy as jnp, jaxnorm, optax
>>> norm, stats = jaxnorm.init_batch_norm(8)
>>> average = optax.ema(0.99)
>>> params = {"w": jnp.ones((3, 8)), "norm": norm}
>>> averaged, _ = average.update(params, average.init(params))
>>> def update(stats, x):
...     return jaxnorm.batch_norm(averaged["norm"], stats, x @ averaged["w"], train=True, momentum=0.0)[1]
>>> stats = precise_stats(update, stats, batches)
"""

from jaxnorm.statistics.adapters import linen_update, nnx_update
from jaxnorm.statistics.averages import combine_stats, cumulative_momentum, debias_stats, debiased_momentum, reset_stats
from jaxnorm.statistics.blending import blend_stats, blended_batch_norm, eval_batch_norm
from jaxnorm.statistics.precise import adapt_stats, precise_stats
from jaxnorm.statistics.variance_shift import correct_variance_shift

__all__ = [
    "adapt_stats",
    "blend_stats",
    "blended_batch_norm",
    "combine_stats",
    "correct_variance_shift",
    "cumulative_momentum",
    "debias_stats",
    "debiased_momentum",
    "eval_batch_norm",
    "linen_update",
    "nnx_update",
    "precise_stats",
    "reset_stats",
]
