"""Domain-specific batch normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import jax
from flax import nnx

from jaxnorm._checks import check_size
from jaxnorm._modules import BatchFunction
from jaxnorm._norm.kinds import domain_batch_norm
from jaxnorm._types import RunningStats
from jaxnorm.nnx._batch_layer import BatchLayer, BatchOptions


class DomainBatchNorm(BatchLayer):
    """Domain-specific batch normalization: `jaxnorm.domain_batch_norm` with the arguments and variables of `BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the statistics of the domain's part of the batch, and
    `running <- momentum running + (1 - momentum) part` of that domain. Inference: the same y with the domain's running
    statistics.

    Statistics have the shape `[num_domains, C]`, and so have `scale` and `bias`, unless they are `shared`.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      num_domains: number of domains, at least 1.
      shared: whether all domains have one scale and bias.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Chang, You, Seo, Kwak, Han, "Domain-specific batch normalization for unsupervised domain adaptation", CVPR 2019,
      https://arxiv.org/abs/1906.03950.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.DomainBatchNorm(1, num_domains=2, rngs=nnx.Rngs(0))
      >>> x, domains = jnp.array([[1.0], [30.0], [3.0], [10.0]]), jnp.array([0, 1, 0, 1])
      >>> print(norm(x, domains).round(3).T)
      [[-1.  1.  1. -1.]]
    """

    layer: ClassVar = BatchFunction(
        domain_batch_norm,
        RunningStats,
        rows=lambda module: (() if module.shared else (module.num_domains,), (module.num_domains,)),
    )

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        num_domains: int = 2,
        shared: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[BatchOptions],
    ):
        """Makes the variables; the arguments are those of the class."""
        self.num_domains = check_size("num_domains", num_domains)
        self.shared = shared
        super().__init__(num_features, rngs=rngs, **options)

    def __call__(  # type: ignore[override]
        self,
        x: jax.Array,
        domains: int | jax.Array,
        use_running_average: bool | jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes x, and in training averages the statistics.

        Args:
          x: array of floating point numbers, `[B, ..., C]` or with the features on `axis`.
          domains: domain of each example, `[B]` ints, or one for all of them; one that is none of them gives NaN.
          use_running_average: goes before the attribute of this name.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if domains do not fit the batch; else as `BatchNorm`.
          TypeError: if domains are no ints; else as `BatchNorm`.
        """
        return self._run(x, use_running_average, mask, domains=domains)
