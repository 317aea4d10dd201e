"""DropConnect, stochastic depth, layer norm and noisy layers against their formulas."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import (
    NoisyLinearParams,
    drop_connect_dense,
    drop_connect_moments,
    drop_path,
    init_layer_norm,
    layer_norm,
    noisy_linear,
)
from jaxnorm.experiments._experiment import Axis, Bars, Bound, Experiment, Found, Lines, Options, Part, Quantity, at_most
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._training import over_seeds
from jaxnorm.schedules import linear_rates

_DEPTH, _CONNECT, _LAYER, _NOISY = "stochastic depth", "DropConnect", "layer norm", "noisy layer"
_FEATURES = 32


def _rates(options: Options) -> np.ndarray:
    """Returns the paper's rates: block l of L is dropped with probability l / L times the last one's."""
    return np.array(linear_rates(options.rate, options.blocks + 1))[1:]


def _stochastic_depth(keys: jax.Array, options: Options) -> Mapping[str, Any]:
    rates = _rates(options)

    def kept(key: jax.Array) -> jax.Array:
        of_blocks = jax.random.split(key, options.blocks)
        ones = jnp.ones((1, 1))
        return jax.vmap(lambda key, rate: drop_path(key, ones, rate, mode="batch", scale=False)[0, 0])(
            of_blocks, jnp.array(rates)
        )

    draw_keys, time_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    draws = over_seeds(lambda key: jax.vmap(kept)(jax.random.split(key, options.draws)).mean(0))(draw_keys)
    expected = (3 * options.blocks - 1) / 4
    return {"kept": draws, "ratio": draws.sum(1) / expected, "depth": draws.sum(1), "time": _times(time_keys, options)}


def _times(keys: jax.Array, options: Options) -> np.ndarray:
    """Returns the CPU time of a training step whose blocks are skipped, over that of one that runs them all.

    Other programs disturb it less than the time on the clock.
    """
    width, rates = 128, jnp.array(_rates(options))
    random = np.random.default_rng(0)
    kernels = jnp.asarray(random.normal(size=(options.blocks, width, width)) / width, jnp.float32)
    x = jnp.asarray(random.normal(size=(128, width)), jnp.float32)

    @jax.jit
    def gradient(key: jax.Array, kernels: jax.Array, rates: jax.Array) -> jax.Array:
        run = jax.vmap(jax.random.bernoulli)(jax.random.split(key, options.blocks), 1 - rates)

        def block(x: jax.Array, given: Any) -> tuple[jax.Array, None]:
            kernel, run = given
            return jax.lax.cond(run, lambda x: x + jax.nn.relu(x @ kernel) @ kernel.T, lambda x: x, x), None

        def loss(kernels: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(jax.lax.scan(block, x, (kernels, run))[0]))

        return jax.grad(loss)(kernels)

    def seconds(key: jax.Array, rates: jax.Array) -> float:
        begin = time.process_time()
        jax.block_until_ready(gradient(key, kernels, rates))
        return time.process_time() - begin

    seconds(jax.random.key(0), rates)
    found = []
    for key in keys:
        turns = [(seconds(jax.random.clone(own), rates), seconds(own, 0 * rates)) for own in jax.random.split(key, options.turns)]
        found.append(statistics.median(fast for fast, _ in turns) / statistics.median(full for _, full in turns))
    return np.array(found)


def _drop_connect(keys: jax.Array, options: Options) -> Mapping[str, Any]:
    @over_seeds
    def of_seed(key: jax.Array) -> dict[str, jax.Array]:
        x_key, kernel_key, draw_key = jax.random.split(key, 3)
        x, kernel = jax.random.normal(x_key, (_FEATURES,)), jax.random.normal(kernel_key, (_FEATURES, 16))
        bias = jnp.ones(16)
        mean, var = drop_connect_moments(kernel, bias, x, 0.5)
        y = drop_connect_dense(draw_key, kernel, bias, jnp.broadcast_to(x, (options.draws, _FEATURES)), 0.5)
        errors = jnp.abs(y.mean(0) - mean) / jnp.sqrt(var / options.draws)
        return {"ratio": jnp.mean(y.var(0) / var), "mean": jnp.sqrt(jnp.mean(jnp.square(errors)))}

    return of_seed(keys)


def _layer_norm(keys: jax.Array, options: Options) -> Mapping[str, Any]:
    params = init_layer_norm(_FEATURES)

    @over_seeds
    def of_seed(key: jax.Array) -> dict[str, jax.Array]:
        x_key, factor_key, kernel_key = jax.random.split(key, 3)
        x, kernel = jax.random.normal(x_key, (64, _FEATURES)), jax.random.normal(kernel_key, (_FEATURES, _FEATURES))
        factors = jnp.exp(jax.random.normal(factor_key, (64, 1)))

        def apply(x: jax.Array) -> jax.Array:
            return layer_norm(params, x)

        y = apply(x)
        changes = apply(factors * x + 3 * factors) - y, apply(x @ (10 * kernel)) - apply(x @ kernel), apply(x[:1]) - y[:1]
        return {"change": jnp.max(jnp.stack([jnp.max(jnp.abs(change)) for change in changes])), "ratio": jnp.mean(y.var(-1))}

    return of_seed(keys)


def _noisy(keys: jax.Array, options: Options) -> Mapping[str, Any]:
    square = (_FEATURES, _FEATURES)
    params = NoisyLinearParams(jnp.zeros(square), None, jnp.ones(square), None)
    identity = jnp.eye(_FEATURES)  # so that the outputs are the noise of the weights

    @over_seeds
    def of_seed(key: jax.Array) -> dict[str, jax.Array]:
        def var(key: jax.Array, factorised: bool) -> jax.Array:
            draw = jax.vmap(lambda key: noisy_linear(key, params, identity, factorised=factorised))
            return jnp.mean(jnp.square(draw(jax.random.split(key, options.draws // 4))))

        first, second = jax.random.split(key)
        found = var(first, True)
        return {"var": found, "ratio": found / (2 / jnp.pi), "independent": var(second, False)}

    return of_seed(keys)


def measure(arm: Callable[..., Any], keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Draws from a layer, and compares with its formula."""
    return arm(keys, options)


def _of(arm: str, name: str) -> Callable[[Found], np.ndarray]:
    return lambda found: found[arm][name]


EXPERIMENT = Experiment(
    claim="Stochastic depth runs (3 L - 1) / 4 of L blocks; other layers keep to formulas",
    sources=(
        'Huang, Sun, Liu, Sedra, Weinberger, "Deep networks with stochastic depth", ECCV 2016, https://arxiv.org/abs/1603.09382',
        'Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of neural networks using DropConnect", ICML 2013, '
        "https://proceedings.mlr.press/v28/wan13.html",
        'Ba, Kiros, Hinton, "Layer normalization", 2016, https://arxiv.org/abs/1607.06450',
        'Fortunato et al., "Noisy networks for exploration", ICLR 2018, https://arxiv.org/abs/1706.10295',
    ),
    options=(
        Option("rate", rate_below_one, 0.5, 0.5, "probability of dropping the last block"),
        Option("blocks", count, 54, 54, "residual blocks"),
        Option("draws", count, 10000, 4000, "draws of the noise"),
        Option("turns", count, 40, 20, "steps that are timed"),
    ),
    arms={_DEPTH: _stochastic_depth, _CONNECT: _drop_connect, _LAYER: _layer_norm, _NOISY: _noisy},
    measure=measure,
    quantities=(
        Quantity("ratio", "measured over the formula: depth, variance", 3),
        Quantity("depth", "blocks that run", 2),
        Quantity("time", "CPU time of a step over that of all blocks", 2),
        Quantity("mean", "error of the mean, standard errors", 2),
        Quantity("change", "largest change by scale, shift or the batch", 6),
        Quantity("var", "variance of factorised noise", 3),
        Quantity("independent", "of independent noise", 3),
        Quantity(
            "kept",
            "share of steps in which a block runs",
            3,
            axis=Axis("block", lambda options: np.arange(1, options.blocks + 1)),
        ),
    ),
    parts=(
        Part("4.10", "blocks that run over (3 L - 1) / 4", _of(_DEPTH, "ratio"), Bound(0.99, 1.01), 4),
        Part("4.10", "CPU time of a training step over that with all blocks", _of(_DEPTH, "time"), Bound(0.5, 0.9)),
        Part("4.10", "DropConnect: variance of draws over the formula", _of(_CONNECT, "ratio"), Bound(0.97, 1.03), 4),
        Part("4.10", "DropConnect: error of the mean, standard errors", _of(_CONNECT, "mean"), at_most(2)),
        Part(
            "4.10",
            "layer norm: change by an example's scale and shift, weights' scale, batch",
            _of(_LAYER, "change"),
            at_most(1e-3),
            5,
        ),
        Part("4.10", "noisy layer: variance of factorised noise, 2 / pi", _of(_NOISY, "var"), Bound(0.62, 0.65), 4),
        Part("4.10", "noisy layer: variance of independent noise, 1", _of(_NOISY, "independent"), Bound(0.98, 1.02), 4),
    ),
    panels=(Bars("ratio"), Lines("kept")),
    protocol=(
        "Block l of L is dropped with probability l / L times the last one's, 0.5, for the whole batch, and skipped where time "
        "is measured, in turns with steps of all blocks. DropConnect drops half of 32 x 16 weights for every example; the noisy "
        "layer's deviations are 1."
    ),
    note=(
        "`drop_path` multiplies by 0 and saves no time; a block must be skipped for that, as with `jax.lax.cond`. Its mode "
        "`row` drops for single examples, and cannot be skipped."
    ),
    control={"rate": 0.0},
)
