"""Metrics of the layers of a model for the history of a run: drift of running statistics, dead units."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from jaxnorm.diagnostics.activations import dead_units
from jaxnorm.diagnostics.drift import statistics_drift
from jaxnorm.diagnostics.recording import Layers, linen_activations, nnx_activations
from jaxnorm.statistics._layers import PyTree, is_spread, layers_of
from jaxnorm.statistics.adapters import linen_update, nnx_update
from jaxnorm.training.state import TrainState

Look = Callable[[PyTree, PyTree, Any], tuple[PyTree, dict[str, jax.Array]]]
"""A bare model: `look(params, stats, x) -> (statistics of x, activations by name)`."""


def layer_metrics(
    model: linen.Module | nnx.Module | Look, x: Any, *, layers: Layers | None = None
) -> Callable[[TrainState], dict[str, float]]:
    """Returns a function `measure(state) -> metrics` that looks at the layers of a model, as `fit` takes it.

    The model sees x in inference, with the parameters and running statistics of the state. Of each norm the root mean square over
    its channels of `(mean - mean_x) / sqrt(var_x)` and of `log(var / var_x)` says how far its running statistics are from those
    of x (`statistics_drift`); large numbers are averages that are stale, or x of another distribution. Of each chosen layer, the
    share of units whose activation is not above 0 for any element of x (`dead_units`).

    Args:
      model: the model of the run. A linen module that is called as `module(x, train=False)`; an nnx model that is called as
        `model(x)`; or a function `look(params, stats, x) -> (statistics, activations)`, of which the first are those of x as
        `precise_stats` takes them (`()` for a model without), the others a dict of arrays `[..., C]`.
      x: what it is called with: a batch that stands for the data, always the same.
      layers: for a Flax model, the layers whose units are looked at, as in `linen_activations`: what leaves them goes to a ReLU,
        or comes from one. Those under `nn.scan` count as one. None for no layer.

    Returns:
      A function of a `TrainState`, compiled once. Its metrics are floats by name: `drift_mean/BatchNorm_0`,
      `drift_log_var/BatchNorm_0` (of norms that have these), and `dead/Dense_0`. Of stacked norms they are over all.

    Raises:
      ValueError: when it is called: if the model has nothing to measure, or none of the layers.
      TypeError: if model is neither a Flax model nor a function; if layers are given for a function.

    Example:
      >>> import jax, optax
      >>> from flax import nnx
      >>> from jaxnorm.diagnostics import layer_metrics
      >>> from jaxnorm.nnx import BatchNorm
      >>> from jaxnorm.training import init_train_state, nnx_apply
      >>> rngs = nnx.Rngs(0)
      >>> net = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), BatchNorm(8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> _, params, stats = nnx_apply(net)
      >>> state = init_train_state(jax.random.key(0), params, stats, optax.sgd(0.1))
      >>> measure = layer_metrics(net, 5 + jax.random.normal(jax.random.key(1), (64, 3)), layers=BatchNorm)
      >>> {name: round(value, 1) for name, value in measure(state).items()}
      {'dead/layers/1': 0.4, 'drift_log_var/layers/1': 0.6, 'drift_mean/layers/1': 5.1}
    """
    look = _look(model, layers)

    @jax.jit
    def measure(params: PyTree, stats: PyTree, x: Any) -> dict[str, jax.Array]:
        of_x, activations = look(params, stats, x)
        found = {f"dead/{name}": jnp.mean(dead_units(one), dtype=jnp.float32) for name, one in activations.items()}
        has_spread = any(is_spread(part) for layer in layers_of(stats).values() for part in layer)
        for name, drift in statistics_drift(stats, of_x).items() if has_spread else ():
            for part, values in (("mean", drift.rms_mean), ("log_var", drift.rms_log_var)):
                if values is not None:
                    found[f"drift_{part}/{name}"] = jnp.sqrt(jnp.mean(jnp.square(values)))
        if not found:
            raise ValueError("model must have running variances to measure, or layers that are chosen, got neither")
        return found

    return lambda state: {name: float(value) for name, value in jax.device_get(measure(state.params, state.stats, x)).items()}


def _look(model: Any, layers: Layers | None) -> Any:
    if isinstance(model, linen.Module):
        return functools.partial(_look_at_linen, model, layers)
    if isinstance(model, nnx.Module):
        return functools.partial(_look_at_nnx, model, layers)
    if not callable(model):
        raise TypeError(f"model must be a linen module, an nnx model or a function of params, stats and x, got {model!r}")
    if layers is not None:
        raise TypeError(f"layers must be None for a function, which gives the activations itself, got {layers!r}")
    return model


def _look_at_linen(module: linen.Module, layers: Layers | None, params: PyTree, stats: PyTree, x: Any) -> Any:
    variables = {"params": params, "batch_stats": stats}
    of_x = linen_update(module, variables, train=False)(stats, x) if layers_of(stats) else stats
    return of_x, {} if layers is None else linen_activations(module, variables, x, layers=layers, train=False)


def _look_at_nnx(model: nnx.Module, layers: Layers | None, params: PyTree, stats: PyTree, x: Any) -> Any:
    copy: Any = nnx.merge(*nnx.split(model), copy=True)
    nnx.update(copy, params, stats)
    copy.eval()
    of_x = nnx_update(copy)(stats, x) if layers_of(stats) else stats
    return of_x, {} if layers is None else nnx_activations(copy, x, layers=layers)
