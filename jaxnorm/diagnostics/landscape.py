"""The loss along its gradient: how far it and the gradient change within a step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._checks import check_number
from jaxnorm._types import wide_dtype
from jaxnorm.diagnostics._layers import difference, whole
from jaxnorm.diagnostics.models import BatchLoss, PyTree, as_loss
from jaxnorm.training.state import as_arrays


class LossLandscape(NamedTuple):
    """A loss and its gradient g at several distances along minus the gradient.

    Attributes:
      losses: the loss after each step, `[steps]`.
      loss_band: the smallest and the largest of these, `[2]`: the narrower the band, the smoother the loss.
      gradient_changes: l2 distance of the gradient after each step from the one before, `[steps]`: how well the gradient predicts
        what comes.
      gradient_band: the smallest and the largest of these, `[2]`.
      smoothness: the largest of these distances over the length of its step, `[]`: effective beta-smoothness. NaN where the
        gradient is 0.
    """

    losses: jax.Array
    loss_band: jax.Array
    gradient_changes: jax.Array
    gradient_band: jax.Array
    smoothness: jax.Array


def loss_landscape(loss: BatchLoss, params: PyTree, batch: Any, step_sizes: Any) -> LossLandscape:
    """Returns the loss along its gradient, how well the gradient predicts itself, and the effective smoothness, all at once.

    With `g = dL(w)` and step sizes s: `losses = L(w - s g)`, `gradient_changes = |dL(w - s g) - g|_2`, `smoothness = max_s
    |dL(w - s g) - g| / (s |g|)`. For a loss of constant curvature H along g, `gradient_changes = s |H g|` and `smoothness = |H g|
    / |g|`, which is at most its largest eigenvalue.

    Args:
      loss: a function of params and a batch that returns a scalar; `model_loss` makes one of a model.
      params: parameters of the network, a tree of arrays.
      batch: what loss takes.
      step_sizes: `[steps]`, at least 0, traced or not; the paper's are of the order of the learning rate. There is one gradient
        for each, and they are computed one after another. A step of 0 gives the loss itself, and counts nothing in smoothness.

    Returns:
      `LossLandscape(losses, loss_band, gradient_changes, gradient_band, smoothness)`, in float32 or wider.

    Raises:
      ValueError: if step_sizes are not `[steps]`, or a concrete one is below 0; if the loss is no scalar.
      TypeError: if step_sizes are no numbers, or loss is no function.

    References:
      Santurkar, Tsipras, Ilyas, Madry, "How does batch normalization help optimization?", NeurIPS 2018, section 3,
      https://arxiv.org/abs/1805.11604.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.diagnostics import loss_landscape
      >>> loss = lambda w, curvature: (curvature * w**2).sum() / 2
      >>> found = loss_landscape(loss, jnp.array([1.0, 0.0]), jnp.array([2.0, 5.0]), [0.5, 1.0])
      >>> print(found.losses, found.gradient_changes, found.smoothness)
      [0. 1.] [2. 4.] 2.0
    """
    steps = jnp.asarray(step_sizes)
    if steps.ndim != 1 or not steps.size:
        raise ValueError(f"step_sizes must have shape [steps], at least one, got {list(steps.shape)}")
    check_number("step_sizes", steps, low=0)
    params, value_and_gradient = as_arrays("params", params), jax.value_and_grad(as_loss(loss))
    every = whole(params)

    def at(here: PyTree, given: tuple[jax.Array, jax.Array]) -> tuple[PyTree, tuple[jax.Array, jax.Array]]:
        number, step = given
        value, there = value_and_gradient(jax.tree.map(lambda w, g: _moved(w, g, step), params, here), batch)
        # The first step, of 0, gives the gradient that the others go along, in one program.
        here = jax.tree.map(lambda old, new: jnp.where(number == 0, new, old), here, there)
        return here, (value, every.norms(difference(there, here))[0])

    given = jnp.arange(steps.size + 1, dtype=jnp.int32), jnp.pad(steps.astype(jnp.result_type(float)), (1, 0))
    here, (losses, changes) = lax.scan(at, jax.tree.map(jnp.zeros_like, params), given)
    losses, changes = losses[1:], changes[1:]
    slopes = jnp.where(steps > 0, changes / (steps.astype(changes.dtype) * every.norms(here)), 0)
    return LossLandscape(losses, _band(losses), changes, _band(changes), jnp.max(slopes))


def _moved(w: jax.Array, g: jax.Array, step: jax.Array) -> jax.Array:
    wide = wide_dtype(w.dtype)
    return (w.astype(wide) - step.astype(wide) * g.astype(wide)).astype(w.dtype)


def _band(values: jax.Array) -> jax.Array:
    return jnp.stack([jnp.min(values), jnp.max(values)])
