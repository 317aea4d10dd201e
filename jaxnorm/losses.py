"""Losses of several passes with noise: R-Drop, and the mean over several masks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._checks import Scalar, check_key, check_like, check_scalar, check_size
from jaxnorm.training.steps import cross_entropy

__all__ = ["multi_sample", "r_drop"]


def r_drop(first: jax.Array, second: jax.Array, labels: jax.Array, *, alpha: Scalar = 1.0) -> jax.Array:
    """Returns every example's cross entropy, and how far two passes with noise of their own differ (R-Drop).

    `(CE(p) + CE(q)) / 2 + alpha (KL(p|q) + KL(q|p)) / 2` with p and q the softmax of both outputs. Where both passes are the
    same, as without noise, it is the cross entropy.

    The two passes may be one, of the batch twice: `jnp.split(model(key, jnp.concatenate([x, x])), 2)`.

    Args:
      first: logits of one pass, `[B, classes]`; a class may be ruled out by minus infinity in both.
      second: logits of the other.
      labels: indices of the classes, integers `[B]`; one outside `[0, classes)` gives NaN.
      alpha: the weight of the divergences, at least 0; a number or a traced scalar. The paper has 1 to 5, by task.

    Returns:
      Losses, `[B]`, in float32 or wider.

    Raises:
      ValueError: if the logits have not the same shape, `[B, classes]` for labels `[B]`; if alpha is negative.
      TypeError: if labels are not integers, or logits not floating point numbers.

    References:
      Liang, Wu, Li, Wang, Meng, Qin, Chen, Zhang, Liu, "R-Drop: regularized dropout for neural networks", NeurIPS 2021,
      https://arxiv.org/abs/2106.14448.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.losses import r_drop
      >>> first, second = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0]])
      >>> print(f"{r_drop(first, second, jnp.array([0]), alpha=5.0)[0]:.3f}")
      0.594
    """
    second = check_like("second", second, first, "first")
    check_scalar("alpha", alpha, low=0)
    entropies = cross_entropy(first, labels) + cross_entropy(second, labels)
    log_p, log_q = (jax.nn.log_softmax(logits.astype(entropies.dtype), axis=1) for logits in (first, second))
    difference = jnp.where(log_p == log_q, 0, log_p - log_q)  # also of two infinities
    divergences = jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * difference, 1)
    return (entropies + jnp.asarray(alpha, entropies.dtype) * divergences) / 2


def multi_sample(key: jax.Array, loss: Callable[[jax.Array], Any], samples: int) -> Any:
    """Returns the mean of a loss over several masks (multi-sample dropout).

    `sum(loss(key_i)) / samples` with keys split of the key. Its gradient is the mean of their gradients, and the masks' part of
    its variance is divided by their number.

    Whatever does not depend on the key is computed once, as the features that the last layers share; the samples are computed
    side by side, with `jax.vmap`.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      loss: a function of a key that returns an array, or a tree of them, as a loss and metrics.
      samples: how many.

    Returns:
      What loss returns, the mean.

    Raises:
      ValueError: if samples is below 1, or key is an array of several keys.
      TypeError: if samples is no int, key no key, or loss no function.

    References:
      Inoue, "Multi-sample dropout for accelerated training and better generalization", 2019, https://arxiv.org/abs/1905.09788.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.losses import multi_sample
      >>> features = jnp.ones(1000)
      >>> loss = lambda key: jaxnorm.dropout(key, features, 0.5).mean() ** 2
      >>> print(multi_sample(jax.random.key(0), loss, 8).round(1))
      1.0
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function of a key, got {loss!r}")
    keys = jax.random.split(check_key(key), check_size("samples", samples))
    return jax.tree.map(lambda values: jnp.mean(values, 0), jax.vmap(loss)(keys))
