"""Batch-instance normalization as a `flax.nnx` module."""

from typing import ClassVar

from jaxnorm._modules import BATCH_INSTANCE_NORM
from jaxnorm.nnx._batch_layer import BatchLayer


class BatchInstanceNorm(BatchLayer):
    """Batch-instance normalization: `jaxnorm.batch_instance_norm` with the arguments, variables and call of `BatchNorm`.

    Training: `y = scale (gate a + (1 - gate) b) + bias`, where a is x normalized by the batch and b by the example, and
    `running <- momentum running + (1 - momentum) batch`. Inference: the same y with the running statistics in the batch's place.

    The parameter `gate` of each channel begins with 1, as batch norm; clip it to [0, 1] after every step of the optimizer.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Nam, Kim, "Batch-instance normalization for adaptively style-invariant neural networks", NeurIPS 2018,
      https://arxiv.org/abs/1805.07925.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.BatchInstanceNorm(1, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[[1.0], [3.0]], [[11.0], [13.0]]]))
      >>> print(y.round(1)[..., 0])
      [[-1.2 -0.8]
       [ 0.8  1.2]]
    """

    layer: ClassVar = BATCH_INSTANCE_NORM
