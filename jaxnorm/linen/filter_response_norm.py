"""Filter response normalization as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import FILTER_RESPONSE_NORM
from jaxnorm.linen._sample_layer import SampleLayer


class FilterResponseNorm(SampleLayer):
    """Filter response normalization, and the activation: `jaxnorm.filter_response_norm`.

    `y = max(scale x / sqrt(mean_square + epsilon + |epsilon_offset|) + bias, threshold)` with the mean square of each example's
    channels over all positions. No activation is to follow.

    Parameters are `scale`, `bias`, `threshold`, and `epsilon_offset` if there is a learned epsilon.

    Attributes:
      epsilon: added to the mean square, a number or a traced scalar.
      channel_axis: the axis, or axes, of the channels; their sizes in ascending order are the shape of the parameters.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of the parameters.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      axis_name: name or names of mapped axes over which the positions are divided, and the statistics pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      use_threshold: whether there is a threshold, which begins with 0 as that of a ReLU.
      learned_epsilon: the start of a learned epsilon, 1e-4 in the paper, for maps of a single position; None for none.

    References:
      Singh, Krishnan, "Filter response normalization layer: eliminating batch dependence in the training of deep neural
      networks", CVPR 2020, https://arxiv.org/abs/1911.09737.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.FilterResponseNorm()
      >>> x = jnp.array([[[3.0], [-3.0], [0.0], [0.0]]])
      >>> print(norm.apply(norm.init(jax.random.key(0), x), x).round(2).ravel())
      [1.41 0.   0.   0.  ]
    """

    layer: ClassVar = FILTER_RESPONSE_NORM

    use_threshold: bool = True
    learned_epsilon: float | None = None
