"""Batch normalization as a `flax.nnx` module."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._modules import BatchFunction
from jaxnorm._norm.batch import batch_norm
from jaxnorm._types import RunningStats
from jaxnorm.nnx._batch_layer import BatchLayer


class BatchNorm(BatchLayer):
    """Batch normalization: `jaxnorm.batch_norm` with Flax's arguments, variables and call, in place of `flax.nnx.BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the mean and the biased variance of each channel in the
    batch, and `running <- momentum running + (1 - momentum) batch`. Inference: the same with the running statistics.

    `scale` and `bias` are of type `nnx.Param`, `mean` and `var` of type `nnx.BatchStat`, as in Flax: states load both ways.
    Unlike Flax's the variance does not cancel for means far from zero, masks and uneven devices are pooled by their counts, a
    batch that is not finite or not counted leaves the running statistics as they were, `dtype` rounds nothing but the output,
    and the flag may be traced.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      use_running_average: whether to use the running statistics (inference) or those of the batch, and average them; set by
        `train()` and `eval()`.
      axis: the axis of the features, or several.
      momentum: weight of the old statistics in the running averages, a number or a traced scalar.
      epsilon: added to the variance, a number or a traced scalar.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters. For a complex x it
        must be complex, and the running mean is then complex.
      param_dtype: type of scale and bias.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      axis_name: name or names of mapped axes over which the statistics are pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      use_fast_variance: accepted and without effect: the variance is always exact.
      promote_dtype: accepted and without effect: statistics are always computed and kept in float32 or wider.
      rngs: keys for the initializers.
      bias_metadata: metadata of the bias's variable, as its sharding.
      scale_metadata: metadata of the scale's variable, as its sharding.
      unbiased: whether the running variance averages `n / (n - 1)` times the batch's, as PyTorch's does. Not in Flax.
      activation: function of single elements that follows, as `jax.nn.relu`; only x is kept for its gradient. Not in Flax.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, https://arxiv.org/abs/1502.03167.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> print(norm(x).round(3))
      [[-1. -1.]
       [ 1.  1.]]
      >>> print(norm.mean[...])
      [0.2 2. ]
    """

    layer: ClassVar = BatchFunction(batch_norm, RunningStats)

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | jax.Array | None = False,
        axis: int | Sequence[int] = -1,
        momentum: float | jax.Array = 0.99,
        epsilon: float | jax.Array = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., jax.Array] = nnx.initializers.zeros,
        scale_init: Callable[..., jax.Array] = nnx.initializers.ones,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Callable[..., Any] | None = None,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
        unbiased: bool = False,
        activation: Callable[[jax.Array], jax.Array] | None = None,
    ):
        """Makes the variables; the arguments are those of the class."""
        super().__init__(
            num_features,
            use_running_average=use_running_average,
            axis=axis,
            momentum=momentum,
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=param_dtype,
            use_bias=use_bias,
            use_scale=use_scale,
            bias_init=bias_init,
            scale_init=scale_init,
            axis_name=axis_name,
            axis_index_groups=axis_index_groups,
            rngs=rngs,
            bias_metadata=bias_metadata,
            scale_metadata=scale_metadata,
        )
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.unbiased = unbiased
        self.activation = activation

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes x, and in training averages the statistics.

        Args:
          x: array of real or complex numbers, `[..., C]` or with the features on `axis`.
          use_running_average: goes before the attribute of this name.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.
          residual: array of x's shape that is added before the activation. Not in Flax.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if `use_running_average` is given nowhere; if num_features is not the size of x along axis; if axis, mask,
            momentum or epsilon do not fit; if axis_name is not bound where the module is called.
          TypeError: if x holds integers or bools; if x is complex where `dtype` or the running mean is not.
        """
        return self._run(x, use_running_average, mask, residual=residual)
