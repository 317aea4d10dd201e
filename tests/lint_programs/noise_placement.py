"""Noise in the wrong place: before a maximum, on the output."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.diagnostics import lint
from jaxnorm.diagnostics._lint.report import Report
from lint_programs import program
from lint_programs.forms import IMAGES, ROWS, Array, kernels, lint_equinox, lint_haiku, lint_linen

# Before a maximum: healed, the noise comes after it.


@program("noise-before-max-pool", "jaxnorm", where="classify")
def dropout_before_max_pool(sick: bool) -> Report:
    params = kernels(conv=(3, 3, 2, 4), head=(64, 4))

    def classify(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
        if sick and train:
            x = jaxnorm.dropout(key, x, 0.5)
        x = nn.max_pool(x, (2, 2), (2, 2))
        if not sick and train:
            x = jaxnorm.dropout(key, x, 0.5)
        return x.reshape(len(x), -1) @ params["head"], stats

    return lint(classify, params, {}, IMAGES)


@program("noise-before-max-pool", "linen", where="Net")
def linen_dropout_before_max_pool(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            noise = nn.Dropout(0.5, deterministic=not train)
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            x = nn.max_pool(noise(x), (2, 2), (2, 2)) if sick else noise(nn.max_pool(x, (2, 2), (2, 2)))
            return nn.Dense(4)(x.reshape(len(x), -1))

    return lint_linen(Net(), IMAGES)


@program("noise-before-max-pool", "nnx", where="Net.__call__")
def nnx_dropout_before_max_pool(sick: bool) -> Report:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
            self.noise = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(64, 4, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.conv(x))
            x = nnx.max_pool(self.noise(x), (2, 2), (2, 2)) if sick else self.noise(nnx.max_pool(x, (2, 2), (2, 2)))
            return self.head(x.reshape(len(x), -1))

    return jaxnorm.nnx.lint(Net(nnx.Rngs(0)), IMAGES)


@program("noise-before-max-pool", "haiku", where="classify")
def haiku_dropout_before_max_pool(sick: bool) -> Report:
    import haiku as hk

    def classify(x, train):
        def noise(x):
            return hk.dropout(hk.next_rng_key(), 0.5, x) if train else x

        x, window = jax.nn.relu(hk.Conv2D(4, 3)(x)), (2, 2, 1)
        x = hk.max_pool(noise(x), window, window, "VALID") if sick else noise(hk.max_pool(x, window, window, "VALID"))
        return hk.Linear(4)(hk.Flatten()(x))

    return lint_haiku(classify, IMAGES)


@program("noise-before-max-pool", "jax", where="halve", deep="vmap")
def noise_before_a_maximum_by_hand(sick: bool) -> Report:
    params = kernels(embed=(2, 4), head=(16, 4))

    def halve(image: Array) -> Array:
        return image.reshape(2, 4, 2, 4, -1).max((1, 3))

    def noise(key: Array, image: Array) -> Array:
        return jnp.where(jax.random.bernoulli(key, 0.7, image.shape), image / 0.7, 0)

    def classify(key: Array, params: Any, image: Array, train: bool) -> Array:
        image = jax.nn.relu(image @ params["embed"])
        image = noise(key, image) if train and sick else image
        image = halve(image)
        image = noise(key, image) if train and not sick else image
        return image.reshape(-1) @ params["head"]

    def apply(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        keys = jax.random.split(key, len(x))
        return jax.vmap(lambda key, image: classify(key, params, image, train))(keys, x), stats

    return lint(apply, params, {}, IMAGES)


@program("noise-before-max-pool", "linen", where="Stage", deep="remat")
def linen_noise_before_max_pool_in_a_rematerialized_stage(sick: bool) -> Report:
    class Stage(nn.Module):
        train: bool

        @nn.compact
        def __call__(self, x):
            x = nn.Dropout(0.3, deterministic=not self.train)(nn.relu(nn.Conv(4, (3, 3))(x)))
            x = x if sick else nn.Conv(4, (3, 3))(x)
            return nn.max_pool(nn.relu(x), (2, 2), (2, 2))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.remat(Stage)(train)(x)
            return nn.Dense(4)(x.reshape(len(x), -1))

    return lint_linen(Net(), IMAGES)


# On the output: healed, it comes before the last linear layer.


@program("noise-on-output", "jaxnorm", where="classify")
def dropout_on_output(sick: bool) -> Report:
    def classify(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        x = jax.nn.relu(x @ params["hidden"])
        if train and not sick:
            x = jaxnorm.dropout(key, x, 0.2)
        x = x @ params["head"]
        if train and sick:
            x = jaxnorm.dropout(key, x, 0.2)
        return x, stats

    return lint(classify, kernels(hidden=(8, 8), head=(8, 4)), {}, ROWS)


@program("noise-on-output", "linen", where="Dropout_0")
def linen_dropout_on_output(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            noise, head = nn.Dropout(0.2, deterministic=not train), nn.Dense(4)
            x = nn.relu(nn.Dense(8)(x))
            return noise(head(x)) if sick else head(noise(x))

    return lint_linen(Net())


@program("noise-on-output", "nnx", where="Net.__call__")
def nnx_dropout_on_output(sick: bool) -> Report:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.head = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
            self.noise = nnx.Dropout(0.2, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.hidden(x))
            return nnx.log_softmax(self.noise(self.head(x)) if sick else self.head(self.noise(x)))

    return jaxnorm.nnx.lint(Net(nnx.Rngs(0)), ROWS)


@program("noise-on-output", "haiku", where="classify")
def haiku_dropout_on_output(sick: bool) -> Report:
    import haiku as hk

    def classify(x, train):
        rate = 0.2 if train else 0.0
        x = jax.nn.relu(hk.Linear(8)(x))
        x = x if sick else hk.dropout(hk.next_rng_key(), rate, x)
        x = hk.Linear(4)(x)
        return hk.dropout(hk.next_rng_key(), rate, x) if sick else x

    return lint_haiku(classify)


@program("noise-on-output", "equinox", where="Net.__call__", deep="vmap")
def equinox_dropout_on_output(sick: bool) -> Report:
    import equinox as eqx

    class Net(eqx.Module):
        hidden: eqx.nn.Linear
        noise: eqx.nn.Dropout
        head: eqx.nn.Linear

        def __init__(self, key):
            first, second = jax.random.split(key)
            self.hidden, self.head = eqx.nn.Linear(8, 8, key=first), eqx.nn.Linear(8, 4, key=second)
            self.noise = eqx.nn.Dropout(0.2)

        def __call__(self, row, state, key):
            row = jax.nn.relu(self.hidden(row))
            return self.noise(self.head(row), key=key) if sick else self.head(self.noise(row, key=key)), state

    return lint_equinox(Net)


@program("noise-on-output", "jaxnorm.linen", where="Dropout_0", deep="branch")
def linen_dropout_on_output_of_a_switch(sick: bool) -> Report:
    class Head(nn.Module):
        train: bool

        @nn.compact
        def __call__(self, x):
            noise = jaxnorm.linen.Dropout(0.2, deterministic=not self.train)
            return noise(nn.Dense(4)(x)) if sick else nn.Dense(4)(noise(x))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            heads = [Head(train, name="first"), Head(train, name="second")]
            x = nn.relu(nn.Dense(8)(x))
            if self.is_initializing():
                return sum(head(x) for head in heads)
            return nn.switch(jnp.int32(x.sum() > 0), [lambda net, x, head=head: head(x) for head in heads], self, x)

    return lint_linen(Net())
