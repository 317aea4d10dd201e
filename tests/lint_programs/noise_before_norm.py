"""Noise before a batch norm; in the healed twins it comes after the last norm."""

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
from lint_programs.forms import ROWS, Array, kernels, lint_equinox, lint_haiku, lint_linen


@program("noise-before-batch-norm", "jaxnorm", where="classify")
def dropout_before_batch_norm(sick: bool) -> Report:
    affine, stats = jaxnorm.init_batch_norm(8)
    params = {"norm": affine} | kernels(hidden=(8, 8), head=(8, 4))

    def classify(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        x = x @ params["hidden"]
        if sick and train:
            x = jaxnorm.dropout(key, x, 0.5)
        x, stats = jaxnorm.batch_norm(params["norm"], stats, x, train=train, momentum=0.9)
        if not sick and train:
            x = jaxnorm.dropout(key, x, 0.5)
        return jax.nn.relu(x) @ params["head"], stats

    return lint(classify, params, stats, ROWS)


@program("noise-before-batch-norm", "linen", where="BatchNorm_0")
def linen_dropout_before_batch_norm(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            noise = nn.Dropout(0.5, deterministic=not train)
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9)
            x = nn.Dense(8, use_bias=False)(x)
            x = norm(noise(x)) if sick else noise(norm(x))
            return nn.Dense(4)(nn.relu(x))

    return lint_linen(Net())


@program("noise-before-batch-norm", "nnx", where="norm")
def nnx_dropout_before_batch_norm(sick: bool) -> Report:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(8, 8, use_bias=False, rngs=rngs)
            self.noise = nnx.Dropout(0.5, rngs=rngs)
            self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            x = self.hidden(x)
            x = self.norm(self.noise(x)) if sick else self.noise(self.norm(x))
            return self.head(nnx.relu(x))

    return jaxnorm.nnx.lint(Net(nnx.Rngs(0)), ROWS)


@program("noise-before-batch-norm", "jaxnorm.linen", where="BatchNorm_0")
def linen_drop_path_before_batch_norm(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            branch = nn.Dense(8, use_bias=False)(x)
            branch = jaxnorm.linen.DropPath(0.3, deterministic=not train)(branch) if sick else branch
            x = jaxnorm.linen.BatchNorm(use_running_average=not train, momentum=0.9)(x + branch)
            return nn.Dense(4)(nn.relu(x))

    return lint_linen(Net())


@program("noise-before-batch-norm", "jaxnorm.nnx", where="norm")
def nnx_uniform_dropout_before_batch_norm(sick: bool) -> Report:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(8, 8, use_bias=False, rngs=rngs)
            self.noise = jaxnorm.nnx.UniformDropout(1.0, rngs=rngs)
            self.norm = jaxnorm.nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            x = self.hidden(x)
            x = self.norm(self.noise(x)) if sick else self.noise(self.norm(x))
            return self.head(nnx.relu(x))

    return jaxnorm.nnx.lint(Net(nnx.Rngs(0)), ROWS)


@program("noise-before-batch-norm", "haiku", where="batch_norm")
def haiku_dropout_before_batch_norm(sick: bool) -> Report:
    import haiku as hk

    def classify(x, train):
        def noise(x):
            return hk.dropout(hk.next_rng_key(), 0.5, x) if train else x

        norm = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
        x = hk.Linear(8, with_bias=False)(x)
        x = norm(noise(x), is_training=train) if sick else noise(norm(x, is_training=train))
        return hk.Linear(4)(jax.nn.relu(x))

    return lint_haiku(classify)


@program("noise-before-batch-norm", "equinox", where="norm", deep="vmap")
def equinox_dropout_before_batch_norm(sick: bool) -> Report:
    import equinox as eqx

    class Net(eqx.Module):
        hidden: eqx.nn.Linear
        noise: eqx.nn.Dropout
        norm: eqx.nn.BatchNorm
        head: eqx.nn.Linear

        def __init__(self, key):
            first, second = jax.random.split(key)
            self.hidden = eqx.nn.Linear(8, 8, use_bias=False, key=first)
            self.noise = eqx.nn.Dropout(0.5)
            self.norm = eqx.nn.BatchNorm(8, "batch", momentum=0.9, mode="batch")
            self.head = eqx.nn.Linear(8, 4, key=second)

        def __call__(self, row, state, key):
            row = self.hidden(row)
            row = self.noise(row, key=key) if sick else row
            row, state = self.norm(row, state)
            row = row if sick else self.noise(row, key=key)
            return self.head(jax.nn.relu(row)), state

    return lint_equinox(Net)


@program("noise-before-batch-norm", "jax", where="normalize", deep="branch")
def noise_of_a_branch_before_batch_norm(sick: bool) -> Report:
    params = kernels(hidden=(8, 8), head=(8, 4))
    stats = {"mean": jnp.zeros(8), "var": jnp.ones(8)}

    def maybe_noise(key: Array, x: Array, train: bool) -> Array:
        if not train:
            return x
        choice, key = jax.random.split(key)
        wanted = jax.random.uniform(choice) < 0.9
        return jax.lax.cond(wanted, lambda x: x * jax.random.bernoulli(key, 0.5, x.shape) / 0.5, lambda x: x, x)

    def normalize(stats: Any, x: Array, train: bool) -> tuple[Array, Any]:
        if not train:
            return (x - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5), stats
        mean, var = x.mean(0), x.var(0)
        new = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
        return (x - mean) / jnp.sqrt(var + 1e-5), new

    def apply(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        x = x @ params["hidden"]
        x = maybe_noise(key, x, train) if sick else x
        x, stats = normalize(stats, x, train)
        x = x if sick else maybe_noise(key, x, train)
        return jax.nn.relu(x) @ params["head"], stats

    return lint(apply, params, stats, ROWS)


@program("noise-before-batch-norm", "linen", where="BatchNorm_0", deep="scan")
def linen_noise_in_scanned_blocks_with_batch_norm(sick: bool) -> Report:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8, use_bias=False)(x))
            x = nn.relu(x)
            return nn.Dropout(0.3, deterministic=not train)(x) if sick else x, None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            axes: Any = {"params": 0, "batch_stats": 0}
            split: Any = {"params": True, "dropout": True}
            every: Any = nn.broadcast
            blocks = nn.scan(Block, variable_axes=axes, split_rngs=split, in_axes=every, length=3)
            x, _ = blocks(name="blocks")(x, train)
            return nn.Dense(4)(nn.Dropout(0.3, deterministic=not train)(x))

    return lint_linen(Net())


@program("noise-before-batch-norm", "linen", where="BatchNorm_1", deep="remat")
def linen_noise_in_a_rematerialized_block_before_a_dense_layer_and_batch_norm(sick: bool) -> Report:
    class Block(nn.Module):
        noisy: bool
        train: bool

        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(nn.Dense(8, use_bias=False)(x))
            x = nn.Dropout(0.5, deterministic=not self.train)(nn.relu(x)) if self.noisy else nn.relu(x)
            return nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(nn.Dense(8, use_bias=False)(x))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(nn.remat(Block)(noisy=sick, train=train)(x))
            return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(x))

    return lint_linen(Net())


@program("noise-before-batch-norm", "linen", where="BatchNorm_1", deep="shared")
def linen_shared_dropout_before_batch_norm(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            noise = nn.Dropout(0.4, deterministic=not train)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8, use_bias=False)(x))
            x = nn.Dense(8, use_bias=False)(nn.relu(x))
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(noise(x) if sick else x)
            x = nn.relu(nn.Dense(8)(noise(nn.relu(x))))
            return nn.Dense(4)(noise(x))

    return lint_linen(Net())
