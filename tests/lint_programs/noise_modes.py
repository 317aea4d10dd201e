"""Noise in the wrong mode: drawn in inference, or never in training."""

from typing import Any

import flax.linen as nn
import jax
from flax import nnx

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.diagnostics import lint
from jaxnorm.diagnostics._lint.report import Report
from lint_programs import program
from lint_programs.forms import ROWS, WORDS, Array, kernels, lint_equinox, lint_haiku, lint_linen

# In inference: healed, in training alone.


@program("noise-in-inference", "jaxnorm", where="classify")
def dropout_in_inference(sick: bool) -> Report:
    def classify(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        x = jax.nn.relu(x @ params["hidden"])
        if train or sick:
            x = jaxnorm.dropout(key, x, 0.5)
        return x @ params["head"], stats

    return lint(classify, kernels(hidden=(8, 8), head=(8, 4)), {}, ROWS)


@program("noise-in-inference", "linen", where="Dropout_0")
def linen_dropout_in_inference(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(nn.Dense(8)(x))
            return nn.Dense(4)(nn.Dropout(0.5, deterministic=False if sick else not train)(x))

    return lint_linen(Net())


@program("noise-in-inference", "nnx", where="Net.__call__")
def nnx_dropout_in_inference(sick: bool) -> Report:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.head = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
            self.noise = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.hidden(x))
            return self.head(self.noise(x, deterministic=False if sick else None))

    return jaxnorm.nnx.lint(Net(nnx.Rngs(0)), ROWS)


@program("noise-in-inference", "haiku", where="classify")
def haiku_dropout_in_inference(sick: bool) -> Report:
    import haiku as hk

    def classify(x, train):
        x = jax.nn.relu(hk.Linear(8)(x))
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if train or sick else x
        return hk.Linear(4)(x)

    return lint_haiku(classify)


@program("noise-in-inference", "equinox", where="Net.__call__", deep="vmap")
def equinox_dropout_in_inference(sick: bool) -> Report:
    import equinox as eqx

    class Net(eqx.Module):
        hidden: eqx.nn.Linear
        noise: eqx.nn.Dropout
        head: eqx.nn.Linear

        def __init__(self, key):
            first, second = jax.random.split(key)
            self.hidden, self.head = eqx.nn.Linear(8, 8, key=first), eqx.nn.Linear(8, 4, key=second)
            self.noise = eqx.nn.Dropout(0.5)

        def __call__(self, row, state, key):
            row = jax.nn.relu(self.hidden(row))
            return self.head(self.noise(row, key=key, inference=False if sick else None)), state

    return lint_equinox(Net)


@program("noise-in-inference", "jax", where="step", deep="scan")
def noise_in_inference_of_a_recurrent_net(sick: bool) -> Report:
    def apply(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        def step(state: Array, word_and_key: tuple[Array, Array]) -> tuple[Array, None]:
            word, key = word_and_key
            if train or sick:
                word = word * jax.random.bernoulli(key, 0.8, word.shape) / 0.8
            return jax.nn.tanh(word @ params["word"] + state @ params["state"]), None

        words = x.swapaxes(0, 1)
        state, _ = jax.lax.scan(step, 0 * words[0], (words, jax.random.split(key, len(words))))
        return state @ params["head"], stats

    return lint(apply, kernels(word=(8, 8), state=(8, 8), head=(8, 4)), {}, WORDS)


# Never in training: healed, in training.


@program("no-noise-in-training", "jaxnorm", where="classify")
def dropout_with_modes_turned_round(sick: bool) -> Report:
    def classify(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        x = jax.nn.relu(x @ params["hidden"])
        if train != sick:
            x = jaxnorm.dropout(key, x, 0.5)
        return x @ params["head"], stats

    return lint(classify, kernels(hidden=(8, 8), head=(8, 4)), {}, ROWS)


@program("no-noise-in-training", "linen", where="Dropout_0")
def linen_dropout_that_is_always_deterministic(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(nn.Dense(8)(x))
            return nn.Dense(4)(nn.Dropout(0.5, deterministic=sick or not train)(x))

    return lint_linen(Net())


@program("no-noise-in-training", "nnx", where="noise")
def nnx_dropout_that_is_always_deterministic(sick: bool) -> Report:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.head = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
            self.noise = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.hidden(x))
            return self.head(self.noise(x, deterministic=True if sick else None))

    return jaxnorm.nnx.lint(Net(nnx.Rngs(0)), ROWS)


@program("no-noise-in-training", "haiku", where="classify")
def haiku_dropout_with_modes_turned_round(sick: bool) -> Report:
    import haiku as hk

    def classify(x, train):
        x = jax.nn.relu(hk.Linear(8)(x))
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if train != sick else x
        return hk.Linear(4)(x)

    return lint_haiku(classify)


@program("no-noise-in-training", "jaxnorm.linen", where="GaussianDropout_0", deep="remat")
def linen_rematerialized_block_that_is_always_deterministic(sick: bool) -> Report:
    class Block(nn.Module):
        train: bool = False

        @nn.compact
        def __call__(self, x):
            return jaxnorm.linen.GaussianDropout(0.5, deterministic=not self.train)(nn.relu(nn.Dense(8)(x)))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(4)(nn.remat(Block)(train=train and not sick)(x))

    return lint_linen(Net())


@program("no-noise-in-training", "jaxnorm.nnx", where="noise", deep="shared")
def nnx_shared_block_that_is_always_deterministic(sick: bool) -> Report:
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.noise = nnx.Linear(8, 8, rngs=rngs), jaxnorm.nnx.Dropout(0.2, rngs=rngs)

        def __call__(self, x):
            return self.noise(nnx.relu(self.linear(x)), deterministic=True if sick else None)

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.block, self.head = Block(rngs), nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.head(self.block(self.block(x)))

    return jaxnorm.nnx.lint(Net(nnx.Rngs(0)), ROWS)
