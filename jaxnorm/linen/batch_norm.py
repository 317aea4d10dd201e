"""Batch normalization as a `flax.linen` module."""

from collections.abc import Callable
from typing import ClassVar

import jax
from flax import linen as nn

from jaxnorm._modules import BatchFunction
from jaxnorm._norm.batch import batch_norm
from jaxnorm._types import RunningStats
from jaxnorm.linen._batch_layer import BatchLayer


class BatchNorm(BatchLayer):
    """Batch normalization: `jaxnorm.batch_norm` with Flax's fields, variables and call, in place of `flax.linen.BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the mean and the biased variance of each channel in the
    batch, and `running <- momentum running + (1 - momentum) batch`. Inference: the same with the running statistics.

    Parameters `scale` and `bias`, and `mean` and `var` in the collection `batch_stats`, are those of Flax: checkpoints load both
    ways. Unlike Flax's the variance does not cancel for means far from zero, masks and uneven devices are pooled by their
    counts, a batch that is not finite or not counted leaves the running statistics as they were, and the flag may be traced.
    Initialization normalizes by the batch, leaves the running statistics at 0 and 1, and needs no bound `axis_name`.

    Attributes:
      use_running_average: whether to use the running statistics (inference) or those of the batch, and average them; here or in
        the call.
      axis: the axis of the features, or several; their sizes in ascending order are the shape of parameters and statistics.
      momentum: weight of the old statistics in the running averages, a number or a traced scalar.
      epsilon: added to the variance, a number or a traced scalar.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters. Complex, as a
        complex x at initialization, gives a complex mean.
      param_dtype: type of scale and bias.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      axis_name: name or names of mapped axes over which the statistics are pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      use_fast_variance: accepted and without effect: the variance is always exact.
      force_float32_reductions: accepted and without effect: statistics are always kept in float32 or wider.
      unbiased: whether the running variance averages `n / (n - 1)` times the batch's, as PyTorch's does. Not in Flax.
      activation: function of single elements that follows, as `jax.nn.relu`; only x is kept for its gradient. Not in Flax.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, https://arxiv.org/abs/1502.03167.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.BatchNorm(momentum=0.9)
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(3))
      [[-1. -1.]
       [ 1.  1.]]
      >>> print(updates["batch_stats"]["mean"])
      [0.2 2. ]
    """

    layer: ClassVar = BatchFunction(batch_norm, RunningStats)

    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    unbiased: bool = False
    activation: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes x, and in training averages the statistics where `batch_stats` is mutable.

        Args:
          x: array of real or complex numbers, `[..., C]` or with the features on `axis`.
          use_running_average: as the field of this name; given once, here or there.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.
          residual: array of x's shape that is added before the activation. Not in Flax.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if `use_running_average` is given nowhere or twice; if axis, mask, momentum or epsilon do not fit; if
            axis_name is not bound where the module is applied.
          TypeError: if x holds integers or bools; if x is complex where `dtype` or the running mean is not.
        """
        return self._run(x, use_running_average, mask, residual=residual)
