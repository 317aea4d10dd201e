"""Networks with random units removed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._checks import Scalar, check_flag, check_key, check_number, check_size
from jaxnorm.diagnostics.models import PyTree
from jaxnorm.training.data import Batch
from jaxnorm.training.steps import check_batch

Masked = Callable[[PyTree, Any], jax.Array]
"""A network as a function of masks, which it multiplies its units by, and x."""


def random_subnet_accuracy(
    key: jax.Array, predict: Masked, units: PyTree, batch: Batch, shares: Scalar, draws: int, *, rescale: bool = True
) -> jax.Array:
    """Returns the accuracy of a network with random shares of its units removed.

    `accuracy = mean(argmax predict(masks, x) = labels)` with masks that are 0 for `round(share n)` of the n units of each layer,
    chosen at random, and `n / (n - round(share n))` for the others, as in dropout, or 1. A network whose units do not lean on
    particular others loses less. Of a draw, the units that a larger share removes include those of a smaller one.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`. The units of a draw depend on the key and its number alone.
      predict: the network as a function of masks and x, that returns outputs of classes, `[B, classes]`. It multiplies the units
        of each layer by its mask, `h * masks["hidden"]`, after the activation and whatever norm, so that a unit removed is 0.
      units: the number of units of each layer, an int or a tree of ints; masks are a tree like it, of float32 arrays `[n]`.
      batch: `(x, labels)`, all of which a network is tried on; labels are integers `[B]`.
      shares: shares of the units to remove, in [0, 1], of any shape, traced or not; `[0, 0.1, ..., 0.9]` gives a curve.
      draws: how many networks for each share; they are computed one after another.
      rescale: whether the units that are left are multiplied so that what the next layer gets is as large as before.

    Returns:
      Accuracies, `[*shares, draws]`, in float32.

    Raises:
      ValueError: if draws or a number of units is below 1, a concrete share outside [0, 1]; if outputs are not `[B, classes]` for
        labels `[B]`; if key is an array of several keys.
      TypeError: if draws or a number of units is no int, shares no numbers, key no key, or the batch no pair with integer labels.

    References:
      Hinton, Srivastava, Krizhevsky, Sutskever, Salakhutdinov, "Improving neural networks by preventing co-adaptation of feature
      detectors", 2012, https://arxiv.org/abs/1207.0580, for the claim. Morcos, Barrett, Rabinowitz, Botvinick, "On the importance
      of single directions for generalization", ICLR 2018, https://arxiv.org/abs/1803.06959, for the measurement, without rescale.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm.diagnostics import random_subnet_accuracy
      >>> x = jax.random.normal(jax.random.key(0), (500, 1))
      >>> def predict(masks, x):  # a hundred units that all do the same
      ...     h = x * jnp.ones((1, 100)) * masks["hidden"]
      ...     return jnp.stack([h.sum(1), -h.sum(1)], 1)
      >>> labels = (x[:, 0] < 0).astype(int)
      >>> found = random_subnet_accuracy(jax.random.key(1), predict, {"hidden": 100}, (x, labels), [0.0, 0.9, 1.0], 5)
      >>> print(found.mean(1).round(1))
      [1.  1.  0.5]
    """
    key, draws, rescale = check_key(key), check_size("draws", draws), check_flag("rescale", rescale)
    _, (x, labels) = check_batch(batch), batch
    shares = jnp.asarray(check_number("shares", jnp.asarray(shares), low=0, high=1), jnp.float32)
    sizes = [check_size("units", size) for size in jax.tree.leaves(units)]
    structure = jax.tree.structure(units)
    if not sizes:
        raise ValueError("units must hold the number of units of at least one layer, got none")
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise TypeError(f"labels must be integers, got {jnp.result_type(labels)}")

    def mask(key: jax.Array, size: int, share: jax.Array) -> jax.Array:
        removed = jnp.round(share * size).astype(jnp.int32)
        left = jnp.where(rescale, size / jnp.maximum(size - removed, 1).astype(jnp.float32), 1)
        return jnp.where(jax.random.permutation(key, size) < removed, 0, left)

    def accuracy(number: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, number % draws), len(sizes))
        share = shares.reshape(-1)[number // draws]
        masks = [mask(own, size, share) for own, size in zip(keys, sizes, strict=True)]
        outputs = predict(jax.tree.unflatten(structure, masks), x)
        if outputs.shape[:-1] != jnp.shape(labels) or outputs.ndim != 2:
            raise ValueError(f"predict must return [B, classes] for labels {list(jnp.shape(labels))}, got {list(outputs.shape)}")
        return jnp.mean(jnp.argmax(outputs, -1) == labels, dtype=jnp.float32)

    return lax.map(accuracy, np.arange(shares.size * draws, dtype=np.int32)).reshape(*shares.shape, draws)
