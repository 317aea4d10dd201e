"""Conditional batch normalization as a `flax.linen` module."""

from typing import ClassVar

import jax
from flax import linen as nn

from jaxnorm._modules import BatchFunction
from jaxnorm._norm.kinds import conditional_batch_norm
from jaxnorm._types import RunningStats
from jaxnorm.linen._batch_layer import BatchLayer


class ConditionalBatchNorm(BatchLayer):
    """Conditional batch normalization: `jaxnorm.conditional_batch_norm` with the fields and variables of `BatchNorm`.

    Training: `y = scale[label] (x - mean) / sqrt(var + epsilon) + bias[label]` with the statistics of the batch, of all classes,
    and `running <- momentum running + (1 - momentum) batch`. Inference: the same y with the running statistics.

    Parameters `scale` and `bias` have the shape `[num_classes, C]`.

    Attributes:
      num_classes: number of classes, at least 1.
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Dumoulin, Shlens, Kudlur, "A learned representation for artistic style", ICLR 2017, https://arxiv.org/abs/1610.07629; de
      Vries, Strub, Mary, Larochelle, Pietquin, Courville, "Modulating early visual processing by language", NIPS 2017,
      https://arxiv.org/abs/1707.00683.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.ConditionalBatchNorm(num_classes=2)
      >>> x, labels = jnp.array([[1.0], [3.0]]), jnp.array([0, 1])
      >>> variables = norm.init(jax.random.key(0), x, labels, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, labels, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(3).T)
      [[-1.  1.]]
    """

    layer: ClassVar = BatchFunction(conditional_batch_norm, RunningStats, rows=lambda module: ((module.num_classes,), ()))

    num_classes: int = 2

    @nn.compact
    def __call__(  # type: ignore[override]
        self,
        x: jax.Array,
        labels: jax.Array,
        use_running_average: bool | jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes x, and in training averages the statistics where `batch_stats` is mutable.

        Args:
          x: array of floating point numbers, `[B, ..., C]` or with the features on `axis`.
          labels: class of each example, `[B]` ints; one that is none of them gives NaN.
          use_running_average: as the field of this name; given once, here or there.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if labels do not fit the batch; else as `BatchNorm`.
          TypeError: if labels are no ints; else as `BatchNorm`.
        """
        return self._run(x, use_running_average, mask, labels=labels)
