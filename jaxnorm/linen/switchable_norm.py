"""Switchable normalization as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import SWITCHABLE_NORM
from jaxnorm.linen._batch_layer import BatchLayer


class SwitchableNorm(BatchLayer):
    """Switchable normalization: `jaxnorm.switchable_norm` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale (x - sum_k w_k mean_k) / sqrt(sum_k v_k var_k + epsilon) + bias` with the statistics of instance, layer
    and batch norm, and `running <- momentum running + (1 - momentum) batch`. Inference: the same y with the running statistics in
    the batch's place.

    The parameters `mean_logits` and `var_logits`, whose softmax the weights are, begin with 1; let no weight decay act on them.

    Attributes:
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Luo, Ren, Peng, Zhang, Li, "Differentiable learning-to-normalize via switchable normalization", ICLR 2019,
      https://arxiv.org/abs/1806.10779.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.SwitchableNorm()
      >>> x = jnp.array([[[1.0], [3.0]]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(1)[..., 0])
      [[-1.  1.]]
    """

    layer: ClassVar = SWITCHABLE_NORM
