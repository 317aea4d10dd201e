"""Scale invariance: what becomes of a network and of its gradient when weights are multiplied."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm._checks import Scalar, check_scalar, check_type
from jaxnorm._types import wide_dtype
from jaxnorm.diagnostics._layers import difference, layers_of, whole
from jaxnorm.diagnostics.models import Predict, PyTree
from jaxnorm.training.data import Batch
from jaxnorm.training.steps import Loss, check_batch, cross_entropy, mean_loss


class ScaleInvariance(NamedTuple):
    """What becomes of a network when weights are multiplied.

    Attributes:
      change: relative change of the outputs, `[]`; 0 where they do not depend on the scale.
      cosine: of the angle between each weight and its gradient, before, `[weights]`; 0 where the loss does not depend on the
        weight's scale.
      gradient_ratio: norm of the gradient of each weight after, over that before, `[weights]`; one over the factor where the loss
        does not depend on the weight's scale.
    """

    change: jax.Array
    cosine: jax.Array
    gradient_ratio: jax.Array


def scale_invariance(
    predict: Predict, params: PyTree, batch: Batch, factors: Mapping[str, Scalar], *, loss: Loss = cross_entropy
) -> ScaleInvariance:
    """Returns how far a network's outputs and gradients depend on the scale of weights, by multiplying them.

    With weights W, their factors a, outputs f and loss L: `change = |f(a W) - f(W)|_2 / |f(W)|_2`, `cosine = <W, dL/dW> / (|W|
    |dL/dW|)`, `gradient_ratio = |dL/dW (a W)|_2 / |dL/dW (W)|_2`. A loss that does not depend on the scale of W has `<W, dL/dW> =
    0` and `gradient_ratio = 1 / a`, as has a layer right before batch norm in training, but for its epsilon. Two layers without a
    norm, of which one is multiplied and the other divided, change nothing of a ReLU network's outputs, but their gradients.

    Args:
      predict: the network as a function of params and x; `model_outputs` makes one of a model, for batch norm with `train=True`.
      params: parameters of the network, a tree of arrays.
      batch: `(x, labels)`.
      factors: for each weight, by its path in params as in `gradient_norms`, what it is multiplied by, at least 0, traced or not;
        all at once.
      loss: function of `(outputs, labels)` that returns one value for each example, `[B]`.

    Returns:
      `ScaleInvariance(change, cosine, gradient_ratio)`, in float32 or wider; the weights in the order of factors.

    Raises:
      ValueError: if params have no such path, which the nearest is named for; if weights have arrays in common; if a concrete
        factor is below 0; as from loss.
      TypeError: if factors are no mapping of paths to numbers, or the batch is no pair.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML 2015,
      section 3.3, https://arxiv.org/abs/1502.03167. van Laarhoven, "L2 regularization versus batch and weight normalization",
      2017, https://arxiv.org/abs/1706.05350.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.diagnostics import scale_invariance
      >>> norm, state = jaxnorm.init_batch_norm(16)
      >>> def predict(params, x):
      ...     y, _ = jaxnorm.batch_norm(norm, state, x @ params["hidden"], train=True)
      ...     return jax.nn.relu(y) @ params["last"]
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {"hidden": jax.random.normal(keys[0], (8, 16)), "last": jax.random.normal(keys[1], (16, 3))}
      >>> batch = jax.random.normal(keys[2], (32, 8)), jnp.arange(32) % 3
      >>> found = scale_invariance(predict, params, batch, {"hidden": 10.0})
      >>> print(f"{found.change:.3f} {abs(found.cosine[0]):.3f} {found.gradient_ratio[0]:.3f}")
      0.000 0.000 0.100
    """
    length, (x, labels) = check_batch(batch), batch
    check_type("factors", factors, Mapping)
    weights = layers_of(params, list(factors), name="factors")
    for path, factor in factors.items():
        check_scalar(f"factors[{path!r}]", factor, low=0)
    by = jnp.stack([*(jnp.asarray(factor, jnp.result_type(float)) for factor in factors.values()), jnp.ones(())])

    def of_batch(params: PyTree) -> tuple[jax.Array, Any]:
        outputs = predict(params, x)
        return mean_loss(loss, outputs, labels, length), outputs

    differentiate = jax.grad(of_batch, has_aux=True)
    scaled = [
        (leaf.astype(wide_dtype(leaf.dtype)) * by[number].astype(wide_dtype(leaf.dtype))).astype(leaf.dtype)
        for number, leaf in zip(weights.numbers, jax.tree.leaves(params), strict=True)
    ]
    before, outputs = differentiate(params)
    after, new_outputs = differentiate(jax.tree.unflatten(jax.tree.structure(params), scaled))
    every = whole(outputs)
    change = every.norms(difference(new_outputs, outputs))[0] / every.norms(outputs)[0]
    return ScaleInvariance(change, weights.cosines(params, before), weights.norms(after) / weights.norms(before))
