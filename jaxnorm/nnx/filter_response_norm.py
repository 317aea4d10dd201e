"""Filter response normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from flax import nnx

from jaxnorm._modules import FILTER_RESPONSE_NORM
from jaxnorm.nnx._sample_layer import SampleLayer, SampleOptions


class FilterResponseNorm(SampleLayer):
    """Filter response normalization, and the activation: `jaxnorm.filter_response_norm`.

    `y = max(scale x / sqrt(mean_square + epsilon + |epsilon_offset|) + bias, threshold)` with the mean square of each example's
    channels over all positions. No activation is to follow.

    Parameters are `scale`, `bias`, `threshold`, and `epsilon_offset` if there is a learned epsilon.

    Args:
      num_features: number of channels, C; with several axes their sizes in ascending order of the axes.
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
      rngs: the streams, of which `params` gives the keys of the initializers.
      bias_metadata: metadata of the bias, as for its sharding.
      scale_metadata: metadata of the scale.
      use_threshold: whether there is a threshold, which begins with 0 as that of a ReLU.
      learned_epsilon: the start of a learned epsilon, 1e-4 in the paper, for maps of a single position; None for none.

    References:
      Singh, Krishnan, "Filter response normalization layer: eliminating batch dependence in the training of deep neural
      networks", CVPR 2020, https://arxiv.org/abs/1911.09737.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.FilterResponseNorm(1, rngs=nnx.Rngs(0))
      >>> print(norm(jnp.array([[[3.0], [-3.0], [0.0], [0.0]]])).round(2).ravel())
      [1.41 0.   0.   0.  ]
    """

    layer: ClassVar = FILTER_RESPONSE_NORM

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_threshold: bool = True,
        learned_epsilon: float | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[SampleOptions],
    ):
        """Makes the parameters; the arguments are those of the class."""
        self.use_threshold = use_threshold
        self.learned_epsilon = learned_epsilon
        super().__init__(num_features, rngs=rngs, **options)
