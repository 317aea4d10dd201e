"""Models as the functions that measurements take: outputs of parameters and x, and a loss of parameters and a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._checks import check_flag
from jaxnorm._types import wide_dtype
from jaxnorm.training.steps import Apply, Loss, check_batch, cross_entropy, mean_loss

PyTree = Any
Predict = Callable[[PyTree, PyTree], Any]
"""A model as a function of parameters and x."""
BatchLoss = Callable[[PyTree, Any], jax.Array]
"""A loss as a function of parameters and a batch, that returns a scalar."""


def model_outputs(apply: Apply, key: jax.Array, stats: PyTree, *, train: bool) -> Predict:
    """Returns a model as a function `predict(params, x) -> outputs`.

    `predict(params, x) = apply(key, params, stats, x, train=train)[0]`: a pure function, with the noise of one key and new
    statistics left aside.

    Args:
      apply: the model, `apply(key, params, stats, x, *, train) -> (outputs, stats)`; of a Flax model, `linen_apply` or
        `nnx_apply` of `jaxnorm.training`.
      key: for its noise, which is the same in every call.
      stats: its running statistics, as apply takes them.
      train: whether the model is in training: batch norms use the statistics of x, and noise is drawn.

    Returns:
      The function.

    Raises:
      TypeError: if train is no bool.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnorm.diagnostics import model_outputs
      >>> from jaxnorm.training import nnx_apply
      >>> apply, params, stats = nnx_apply(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
      >>> model_outputs(apply, jax.random.key(0), stats, train=False)(params, jnp.ones((4, 3))).shape
      (4, 2)
    """
    train = check_flag("train", train)
    # A clone: that every call draws the same is meant, and no reuse of a key to be told of.
    return lambda params, x: apply(jax.random.clone(key), params, stats, x, train=train)[0]


def model_loss(apply: Apply, key: jax.Array, stats: PyTree, *, train: bool, loss: Loss = cross_entropy) -> BatchLoss:
    """Returns the loss of a model as a function `loss(params, batch) -> scalar`, which most measurements take.

    `mean(loss(apply(key, params, stats, x, train=train)[0], labels))` of a batch `(x, labels)`. The noise is that of one key in
    every call, so that two calls differ by their parameters and batches alone; running statistics are not updated.

    Args:
      apply: the model, as in `model_outputs`.
      key: for its noise.
      stats: its running statistics.
      train: whether the model is in training: batch norms use the statistics of the batch, and noise is drawn.
      loss: function of `(outputs, labels)` that returns one value for each example, `[B]`.

    Returns:
      The loss, whose value is in float32 or wider.

    Raises:
      TypeError: if train is no bool; when the loss is called: if the batch is no pair.
      ValueError: when the loss is called: if x and labels differ in length or are empty, or if losses are not `[B]`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from jaxnorm.diagnostics import model_loss
      >>> from jaxnorm.training import linen_apply
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, *, train):
      ...         return nn.Dense(2, kernel_init=nn.initializers.zeros)(nn.BatchNorm(use_running_average=not train)(x))
      >>> net, x, labels = Net(), jnp.ones((4, 3)), jnp.array([0, 1, 1, 1])
      >>> variables = net.init(jax.random.key(0), x, train=False)
      >>> loss = model_loss(linen_apply(net), jax.random.key(1), variables["batch_stats"], train=True)
      >>> print(f"{loss(variables['params'], (x, labels)):.3f}")
      0.693
    """
    predict = model_outputs(apply, key, stats, train=train)

    def of_batch(params: PyTree, batch: Any) -> jax.Array:
        length, (x, labels) = check_batch(batch), batch
        return mean_loss(loss, predict(params, x), labels, length)

    return of_batch


def as_loss(loss: Any) -> BatchLoss:
    """Returns a loss whose value is in float32 or wider, and which raises unless it is a scalar."""
    if not callable(loss):
        raise TypeError(f"loss must be a function of params and a batch, got {loss!r}")

    def scalar(params: PyTree, batch: Any) -> jax.Array:
        value = jnp.asarray(loss(params, batch))
        if value.shape:
            raise ValueError(f"loss must return a scalar, got shape {list(value.shape)}: its mean, say")
        return value.astype(wide_dtype(value.dtype))

    return scalar
