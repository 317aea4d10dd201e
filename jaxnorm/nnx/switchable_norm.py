"""Switchable normalization as a `flax.nnx` module."""

from typing import ClassVar

from jaxnorm._modules import SWITCHABLE_NORM
from jaxnorm.nnx._batch_layer import BatchLayer


class SwitchableNorm(BatchLayer):
    """Switchable normalization: `jaxnorm.switchable_norm` with the arguments, variables and call of `BatchNorm`.

    Training: `y = scale (x - sum_k w_k mean_k) / sqrt(sum_k v_k var_k + epsilon) + bias` with the statistics of instance, layer
    and batch norm, and `running <- momentum running + (1 - momentum) batch`. Inference: the same y with the running statistics in
    the batch's place.

    The parameters `mean_logits` and `var_logits`, whose softmax the weights are, begin with 1; let no weight decay act on them.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Luo, Ren, Peng, Zhang, Li, "Differentiable learning-to-normalize via switchable normalization", ICLR 2019,
      https://arxiv.org/abs/1806.10779.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.SwitchableNorm(1, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[[1.0], [3.0]]]))
      >>> print(y.round(1)[..., 0])
      [[-1.  1.]]
    """

    layer: ClassVar = SWITCHABLE_NORM
