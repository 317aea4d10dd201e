"""What an optimizer must not leave: weights that are too long."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnorm._checks import Scalar, check_scalar
from jaxnorm._types import wide_dtype


def max_norm(limit: Scalar) -> optax.GradientTransformation:
    """Returns a transformation that keeps the weights of every unit from growing beyond a length.

    `w min(1, limit / |w|)` of what the updates would make of the parameters, with the length over all weights that come into a
    unit: over all axes but the last, as of kernels `[..., in, out]`. Parameters of one axis or none, as biases, are left alone;
    others are by `optax.masked`.

    It is the last of a chain: `optax.chain(optax.sgd(0.1), max_norm(3.0))`. Weights that are short enough get the update as it
    is; without updates it changes nothing more, but for rounding.

    Args:
      limit: the largest length, at least 0; a number or a traced scalar. With dropout 2 to 4 are common.

    Returns:
      An Optax transformation, whose `update` needs the parameters.

    Raises:
      ValueError: if limit is negative or not finite; in its `update`, if there are no parameters.
      TypeError: if limit is no number.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15, 2014, section 5.1, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> from jaxnorm.training import max_norm
      >>> kernel = jnp.array([[3.0, 0.1], [4.0, 0.2]])
      >>> optimizer = optax.chain(optax.sgd(0.1), max_norm(1.0))
      >>> updates, _ = optimizer.update(jnp.zeros((2, 2)), optimizer.init(kernel), kernel)
      >>> print(np.round(np.asarray(optax.apply_updates(kernel, updates)), 3))
      [[0.6 0.1]
       [0.8 0.2]]
    """
    check_scalar("limit", limit, low=0)

    def projected(update: jax.Array, param: jax.Array) -> jax.Array:
        if param.ndim < 2:
            return update
        wide = wide_dtype(param.dtype)
        new = param.astype(wide) + update.astype(wide)
        length = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(new)), tuple(range(param.ndim - 1)), keepdims=True))
        most = jnp.asarray(limit, length.dtype)
        long = length > most
        shorter = new * jnp.where(long, most / jnp.where(long, length, 1), 1) - param.astype(wide)
        return jnp.where(long, shorter.astype(update.dtype), update)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("params must be given to the update of max_norm, got None")
        return jax.tree.map(projected, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
