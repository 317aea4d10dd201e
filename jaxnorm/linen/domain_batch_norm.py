"""Domain-specific batch normalization as a `flax.linen` module."""

from typing import ClassVar

import jax
from flax import linen as nn

from jaxnorm._modules import BatchFunction
from jaxnorm._norm.kinds import domain_batch_norm
from jaxnorm._types import RunningStats
from jaxnorm.linen._batch_layer import BatchLayer


class DomainBatchNorm(BatchLayer):
    """Domain-specific batch normalization: `jaxnorm.domain_batch_norm` with the fields and variables of `BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the statistics of the domain's part of the batch, and
    `running <- momentum running + (1 - momentum) part` of that domain. Inference: the same y with the domain's running
    statistics.

    Statistics have the shape `[num_domains, C]`, and so have `scale` and `bias`, unless they are `shared`.

    Attributes:
      num_domains: number of domains, at least 1.
      shared: whether all domains have one scale and bias.
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Chang, You, Seo, Kwak, Han, "Domain-specific batch normalization for unsupervised domain adaptation", CVPR 2019,
      https://arxiv.org/abs/1906.03950.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.DomainBatchNorm(num_domains=2)
      >>> x, domains = jnp.array([[1.0], [30.0], [3.0], [10.0]]), jnp.array([0, 1, 0, 1])
      >>> variables = norm.init(jax.random.key(0), x, domains, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, domains, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(3).T)
      [[-1.  1.  1. -1.]]
    """

    layer: ClassVar = BatchFunction(
        domain_batch_norm,
        RunningStats,
        rows=lambda module: (() if module.shared else (module.num_domains,), (module.num_domains,)),
    )

    num_domains: int = 2
    shared: bool = False

    @nn.compact
    def __call__(  # type: ignore[override]
        self,
        x: jax.Array,
        domains: int | jax.Array,
        use_running_average: bool | jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes x, and in training averages the statistics where `batch_stats` is mutable.

        Args:
          x: array of floating point numbers, `[B, ..., C]` or with the features on `axis`.
          domains: domain of each example, `[B]` ints, or one for all of them; one that is none of them gives NaN.
          use_running_average: as the field of this name; given once, here or there.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if domains do not fit the batch; else as `BatchNorm`.
          TypeError: if domains are no ints; else as `BatchNorm`.
        """
        return self._run(x, use_running_average, mask, domains=domains)
