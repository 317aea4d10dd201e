"""Conditional batch normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import jax
from flax import nnx

from jaxnorm._checks import check_size
from jaxnorm._modules import BatchFunction
from jaxnorm._norm.kinds import conditional_batch_norm
from jaxnorm._types import RunningStats
from jaxnorm.nnx._batch_layer import BatchLayer, BatchOptions


class ConditionalBatchNorm(BatchLayer):
    """Conditional batch normalization: `jaxnorm.conditional_batch_norm` with the arguments and variables of `BatchNorm`.

    Training: `y = scale[label] (x - mean) / sqrt(var + epsilon) + bias[label]` with the statistics of the batch, of all classes,
    and `running <- momentum running + (1 - momentum) batch`. Inference: the same y with the running statistics.

    Parameters `scale` and `bias` have the shape `[num_classes, C]`.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      num_classes: number of classes, at least 1.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Dumoulin, Shlens, Kudlur, "A learned representation for artistic style", ICLR 2017, https://arxiv.org/abs/1610.07629; de
      Vries, Strub, Mary, Larochelle, Pietquin, Courville, "Modulating early visual processing by language", NIPS 2017,
      https://arxiv.org/abs/1707.00683.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.ConditionalBatchNorm(1, num_classes=2, rngs=nnx.Rngs(0))
      >>> x, labels = jnp.array([[1.0], [3.0]]), jnp.array([0, 1])
      >>> print(norm(x, labels).round(3).T)
      [[-1.  1.]]
    """

    layer: ClassVar = BatchFunction(conditional_batch_norm, RunningStats, rows=lambda module: ((module.num_classes,), ()))

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        num_classes: int = 2,
        rngs: nnx.Rngs,
        **options: Unpack[BatchOptions],
    ):
        """Makes the variables; the arguments are those of the class."""
        self.num_classes = check_size("num_classes", num_classes)
        super().__init__(num_features, rngs=rngs, **options)

    def __call__(  # type: ignore[override]
        self,
        x: jax.Array,
        labels: jax.Array,
        use_running_average: bool | jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes x, and in training averages the statistics.

        Args:
          x: array of floating point numbers, `[B, ..., C]` or with the features on `axis`.
          labels: class of each example, `[B]` ints; one that is none of them gives NaN.
          use_running_average: goes before the attribute of this name.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if labels do not fit the batch; else as `BatchNorm`.
          TypeError: if labels are no ints; else as `BatchNorm`.
        """
        return self._run(x, use_running_average, mask, labels=labels)
