"""Predictions from noise that is drawn at test time: of dropout, or of the statistics of random training batches."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxnorm._checks import check_key, check_size
from jaxnorm.uncertainty._models import function_of_batch, function_of_key
from jaxnorm.uncertainty._split import draw_samples

_NEEDS_NOISE = (
    "model must draw noise, but its outputs do not depend on the key: it has no layer with noise, or its layers were told not to "
    "draw, as by deterministic=True or train=False"
)
_NEEDS_STATISTICS = "model must have statistics of the batch, but its outputs do not depend on the training data"


def mc_predict(
    key: jax.Array,
    model: Any,
    x: Any,
    samples: int,
    *,
    prefix: Callable[[Any], Any] | None = None,
    batch_size: int = 16,
    **arguments: Any,
) -> Any:
    """Returns samples of a model's outputs for x, each with noise of its own (MC dropout).

    `y_i = model(key_i, x)` for i from 0 to samples - 1; `predictive(y)` makes a prediction with its uncertainty of them. The key
    of a sample depends on the given key and i alone: more samples, or other batches of them, leave the first ones as they are,
    and several x of one shape are seen through the same masks.

    What comes before the first noise runs once: the model is traced, and what no key reaches is taken out of the loop over
    batches of samples. Calls of `jax.jit` and `jax.checkpoint` are gone into for that; a loop, a branch, or a function with a
    derivative of its own is run for every sample once a key reaches it. Memory is for one batch of samples besides all outputs,
    and for these twice where batch_size does not divide samples. A call compiles the model anew: where there are many, put them
    under `jax.jit`.

    Batch norm uses its running statistics while dropout draws. Flax models are called so that it does: modules with a field
    `use_running_average` are told True, whatever the model tells them, as with `train=True`. An nnx model is copied, the copy set
    to training, and its streams of keys are seeded from the sample's key; the model itself keeps its statistics and streams. In a
    linen module the key is that of the stream `dropout`, and no collection is mutable: a layer that updates one is Flax's error.
    A bare function says `train=False` to its batch norms itself.

    The masks of a sample are those of a call of the model by itself with its key, to the bit, and its outputs are, to rounding.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      model: a function of a key and x; a linen module that is bound to its variables, `module.bind(variables)`; or an nnx model.
      x: what the model is given, an array or a tree of arrays.
      samples: how many.
      prefix: a function of x that has no noise, where x is what it takes and the model takes what it returns; or None.
      batch_size: how many samples are computed at once.
      **arguments: arguments of the model's call, such as `train=True` or `deterministic=False`, by which a linen module draws.

    Returns:
      What the model returns, an array or a tree of them, with the samples along a new first axis: `[samples, ...]`.

    Raises:
      ValueError: if samples or batch_size is below 1; if key is an array of several keys; if the model draws no noise; if a
        linen module is not bound.
      TypeError: if samples or batch_size is no int, key no key, or model or prefix nothing to be called.

    References:
      Gal, Ghahramani, "Dropout as a Bayesian approximation: representing model uncertainty in deep learning", ICML 2016,
      https://arxiv.org/abs/1506.02142.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen
      >>> from jaxnorm.uncertainty import mc_predict, predictive
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, *, train):
      ...         x = nn.relu(jaxnorm.linen.BatchNorm(use_running_average=not train)(nn.Dense(32)(x)))
      ...         return nn.Dense(3)(jaxnorm.linen.Dropout(0.5, deterministic=not train)(x))
      >>> net, x = Net(), jnp.ones((4, 8))
      >>> variables = net.init(jax.random.key(0), x, train=False)
      >>> samples = mc_predict(jax.random.key(1), net.bind(variables), x, 100, train=True)
      >>> samples.shape, predictive(samples).mutual_information.shape
      ((100, 4, 3), (4,))
    """
    draw = function_of_key(model, arguments)
    if prefix is not None and not callable(prefix):
        raise TypeError(f"prefix must be a function of x, or None, got {prefix!r}")
    return _sample(draw, key, x if prefix is None else prefix(x), samples, batch_size, needs=_NEEDS_NOISE)


def mc_batch_norm(
    key: jax.Array, model: Any, data: Any, x: Any, samples: int, *, examples: int, batch_size: int = 16, **arguments: Any
) -> Any:
    """Returns samples of a model's outputs for x, each with the statistics of a training batch (MC batch norm).

    `y_i = model(data[J_i], x)` with J_i the indices of `examples` different ones, drawn anew for every sample: all batch norms
    get their statistics from one pass of one training batch in training, and predict x with them. `predictive(y)` goes on from
    there.

    A bare function does both. In Flax models, modules with a field `use_running_average` are told False, and a momentum of 0, for
    the batch, and True for x; an nnx model is in inference besides, a linen module as its arguments say. The model itself is not
    changed. Keys, batches of samples and memory are as in `mc_predict`, and what needs no statistics runs once.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      model: a function of a training batch and x; a linen module that is bound to its variables, `module.bind(variables)`; or an
        nnx model.
      data: the inputs of the training data, an array `[N, ...]` or a tree of them.
      x: what the model is given, an array or a tree of arrays.
      samples: how many.
      examples: how many examples a batch of the training had; their number is the amount of noise.
      batch_size: how many samples are computed at once.
      **arguments: arguments of the model's call in inference, such as `train=False`.

    Returns:
      What the model returns, an array or a tree of them, with the samples along a new first axis: `[samples, ...]`.

    Raises:
      ValueError: if samples, examples or batch_size is below 1, or examples above N; if the arrays of data are not of one length;
        if key is an array of several keys; if no output depends on the batch; if a linen module is not bound.
      TypeError: if one of these is no int, key no key, or model nothing to be called.

    References:
      Teye, Azizpour, Smith, "Bayesian uncertainty estimation for batch normalized deep networks", ICML 2018,
      https://arxiv.org/abs/1802.06455.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.uncertainty import mc_batch_norm
      >>> params, state = jaxnorm.init_batch_norm(4)
      >>> data, x = jax.random.normal(jax.random.key(0), (1000, 4)), jnp.ones((2, 4))
      >>> def model(batch, x):
      ...     _, of_batch = jaxnorm.batch_norm(params, state, batch, train=True, momentum=0.0)
      ...     return jaxnorm.batch_norm(params, of_batch, x, train=False)[0]
      >>> for examples in (16, 256):
      ...     y = mc_batch_norm(jax.random.key(1), model, data, x, 200, examples=examples)
      ...     print(f"{y.std(0).mean():.2f}")
      0.34
      0.07
    """
    predict = function_of_batch(model, arguments)
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"data must be arrays of one length, along their first axis, got {sorted(lengths)}")
    ((length,),) = lengths
    if check_size("examples", examples) > length:
        raise ValueError(f"examples must be at most {length}, the length of data, got {examples}")

    def draw(key: jax.Array, given: Any) -> Any:
        data, x = given
        chosen = jax.random.choice(key, length, (examples,), replace=False)
        return predict(jax.tree.map(lambda leaf: leaf[chosen], data), x)

    return _sample(draw, key, (data, x), samples, batch_size, needs=_NEEDS_STATISTICS)


def _sample(draw: Callable[[jax.Array, Any], Any], key: jax.Array, x: Any, samples: int, batch_size: int, *, needs: str) -> Any:
    counts = check_size("samples", samples), check_size("batch_size", batch_size)
    return draw_samples(draw, check_key(key), x, *counts, needs=needs)
