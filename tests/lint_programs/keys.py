"""Keys that are misused: one for all examples, used twice, or made in the model."""

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
from lint_programs.forms import ROWS, WORDS, Array, kernels, lint_equinox, lint_haiku, lint_linen

# One mask for all examples: healed, one for each.


@program("noise-shared-by-examples", "jaxnorm", where="classify", deep="vmap")
def dropout_by_one_key_under_vmap(sick: bool) -> Report:
    def classify(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        x = jax.nn.relu(x @ params["hidden"])
        if train:
            keys, axis = (key, None) if sick else (jax.random.split(key, len(x)), 0)
            x = jax.vmap(lambda key, row: jaxnorm.dropout(key, row, 0.5), (axis, 0))(keys, x)
        return x @ params["head"], stats

    return lint(classify, kernels(hidden=(8, 8), head=(8, 4)), {}, ROWS)


@program("noise-shared-by-examples", "linen", where="Dropout_0")
def linen_dropout_that_broadcasts_over_examples(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(nn.Dense(8)(x))
            return nn.Dense(4)(nn.Dropout(0.5, broadcast_dims=(0,) if sick else (1,), deterministic=not train)(x)).mean(1)

    return lint_linen(Net(), WORDS)


@program("noise-shared-by-examples", "linen", where="Dropout_0", deep="vmap")
def linen_dropout_by_one_key_under_vmap(sick: bool) -> Report:
    class Block(nn.Module):
        train: bool

        @nn.compact
        def __call__(self, row):
            return nn.Dropout(0.5, deterministic=not self.train)(nn.relu(nn.Dense(8)(row)))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            axes: Any = {"params": None}
            split: Any = {"params": False, "dropout": not sick}
            return nn.Dense(4)(nn.vmap(Block, variable_axes=axes, split_rngs=split)(train, name="block")(x))

    return lint_linen(Net())


@program("noise-shared-by-examples", "nnx", where="Net.__call__", deep="vmap")
def nnx_dropout_by_one_key_under_vmap(sick: bool) -> Report:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.head = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
            self.noise, self.rngs = nnx.Dropout(0.5), rngs.fork()

        def __call__(self, x):
            x = nnx.relu(self.hidden(x))
            key = self.rngs.dropout()
            keys, axis = (key, None) if sick else (jax.random.split(key, len(x)), 0)
            return self.head(jax.vmap(lambda key, row: self.noise(row, rngs=key), (axis, 0))(keys, x))

    return jaxnorm.nnx.lint(Net(nnx.Rngs(0)), ROWS)


@program("noise-shared-by-examples", "equinox", where="Net.__call__", deep="vmap")
def equinox_dropout_by_one_key_under_vmap(sick: bool) -> Report:
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
            return self.head(self.noise(jax.nn.relu(self.hidden(row)), key=key)), state

    return lint_equinox(Net, one_key=sick)


@program("noise-shared-by-examples", "jax", where="step", deep="scan")
def noise_of_a_recurrent_net_shared_by_examples(sick: bool) -> Report:
    def apply(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        def step(state: Array, word_and_key: tuple[Array, Array]) -> tuple[Array, None]:
            word, key = word_and_key
            if train:
                word = word * jax.random.bernoulli(key, 0.8, word.shape[1:] if sick else word.shape) / 0.8
            return jax.nn.tanh(word @ params["word"] + state @ params["state"]), None

        words = x.swapaxes(0, 1)
        state, _ = jax.lax.scan(step, 0 * words[0], (words, jax.random.split(key, len(words))))
        return state @ params["head"], stats

    return lint(apply, kernels(word=(8, 8), state=(8, 8), head=(8, 4)), {}, WORDS)


# One key for two masks, or for all steps of a loop: healed, a key for each.


@program("noise-repeated", "jaxnorm", where="classify")
def two_dropouts_by_one_key(sick: bool) -> Report:
    def classify(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        first, second = (key, key) if sick else jax.random.split(key)
        x = jax.nn.relu(x @ params["hidden"])
        x = jaxnorm.dropout(first, x, 0.5) if train else x
        x = jax.nn.relu(x @ params["second"])
        x = jaxnorm.dropout(second, x, 0.5) if train else x
        return x @ params["head"], stats

    return lint(classify, kernels(hidden=(8, 8), second=(8, 8), head=(8, 4)), {}, ROWS)


@program("noise-repeated", "linen", where="Dropout_1")
def linen_dropouts_by_one_key(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            key = self.make_rng("dropout") if train else None
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8)(x)), rng=key)
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8)(x)), rng=key if sick else None)
            return nn.Dense(4)(x)

    return lint_linen(Net())


@program("noise-repeated", "linen", where="Dropout_0", deep="scan")
def linen_scanned_blocks_with_one_key(sick: bool) -> Report:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return x + nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Dense(8)(x))), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            axes: Any = {"params": 0}
            split: Any = {"params": True, "dropout": not sick}
            every: Any = nn.broadcast
            blocks = nn.scan(Block, variable_axes=axes, split_rngs=split, in_axes=every, length=3)
            return nn.Dense(4)(blocks(name="blocks")(x, train)[0])

    return lint_linen(Net())


@program("noise-repeated", "nnx", where="Net.__call__")
def nnx_dropouts_by_one_key(sick: bool) -> Report:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
            self.head = nnx.Linear(8, 4, rngs=rngs)
            self.noise, self.rngs = nnx.Dropout(0.5), rngs.fork()

        def __call__(self, x):
            key = self.rngs.dropout()
            x = self.noise(nnx.relu(self.first(x)), rngs=key)
            x = self.noise(nnx.relu(self.second(x)), rngs=key if sick else self.rngs.dropout())
            return self.head(x)

    return jaxnorm.nnx.lint(Net(nnx.Rngs(0)), ROWS)


@program("noise-repeated", "haiku", where="classify")
def haiku_dropouts_by_one_raw_key(sick: bool) -> Report:
    import haiku as hk

    def classify(x, train):
        key = jax.random.key_data(hk.next_rng_key())
        x = jax.nn.relu(hk.Linear(8)(x))
        x = hk.dropout(key, 0.5, x) if train else x
        x = jax.nn.relu(hk.Linear(8)(x))
        x = hk.dropout(key if sick else hk.next_rng_key(), 0.5, x) if train else x
        return hk.Linear(4)(x)

    return lint_haiku(classify)


@program("noise-repeated", "jax", where="block", deep="scan")
def scanned_blocks_with_one_key(sick: bool) -> Report:
    params = {"blocks": kernels(blocks=(3, 8, 8))["blocks"]} | kernels(head=(8, 4))

    def apply(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        def block(x: Array, kernel_and_number: tuple[Array, Array]) -> tuple[Array, None]:
            kernel, number = kernel_and_number
            own = key if sick else jax.random.fold_in(key, number)
            branch = jax.nn.relu(x @ kernel)
            return x + (jnp.where(jax.random.bernoulli(own, 0.8, x.shape), branch / 0.8, 0) if train else branch), None

        x, _ = jax.lax.scan(block, x, (params["blocks"], jnp.arange(3)))
        return x @ params["head"], stats

    return lint(apply, params, {}, ROWS)


# A key that is made in the model: healed, the one that is given.


@program("key-constant", "jaxnorm", where="classify")
def dropout_by_a_key_of_its_own(sick: bool) -> Report:
    def classify(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        x = jax.nn.relu(x @ params["hidden"])
        if train:
            x = jaxnorm.dropout(jax.random.key(42) if sick else key, x, 0.5)
        return x @ params["head"], stats

    return lint(classify, kernels(hidden=(8, 8), head=(8, 4)), {}, ROWS)


@program("key-constant", "linen", where="Dropout_0")
def linen_dropout_by_a_key_of_its_own(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(nn.Dense(8)(x))
            return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(x, rng=jax.random.key(42) if sick else None))

    return lint_linen(Net())


@program("key-constant", "nnx", where="Net.__call__")
def nnx_dropout_by_streams_of_its_own(sick: bool) -> Report:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.head = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
            self.noise = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.hidden(x))
            return self.head(self.noise(x, rngs=nnx.Rngs(dropout=42) if sick else None))

    return jaxnorm.nnx.lint(Net(nnx.Rngs(0)), ROWS)


@program("key-constant", "equinox", where="Net.__call__", deep="vmap")
def equinox_dropout_by_a_stored_key(sick: bool) -> Report:
    import equinox as eqx

    class Net(eqx.Module):
        hidden: eqx.nn.Linear
        noise: eqx.nn.Dropout
        head: eqx.nn.Linear
        key: jax.Array

        def __init__(self, key):
            first, second, self.key = jax.random.split(key, 3)
            self.hidden, self.head = eqx.nn.Linear(8, 8, key=first), eqx.nn.Linear(8, 4, key=second)
            self.noise = eqx.nn.Dropout(0.5)

        def __call__(self, row, state, key):
            return self.head(self.noise(jax.nn.relu(self.hidden(row)), key=self.key if sick else key)), state

    return lint_equinox(Net)


@program("key-constant", "jax", where="block", deep="scan")
def scanned_blocks_with_keys_by_number(sick: bool) -> Report:
    params = {"blocks": kernels(blocks=(3, 8, 8))["blocks"]} | kernels(head=(8, 4))

    def apply(key: Array, params: Any, stats: Any, x: Array, *, train: bool) -> tuple[Array, Any]:
        def block(x: Array, kernel_and_number: tuple[Array, Array]) -> tuple[Array, None]:
            kernel, number = kernel_and_number
            own = jax.random.fold_in(jax.random.PRNGKey(7) if sick else key, number)
            branch = jax.nn.relu(x @ kernel)
            return x + (jnp.where(jax.random.bernoulli(own, 0.8, x.shape), branch / 0.8, 0) if train else branch), None

        x, _ = jax.lax.scan(block, x, (params["blocks"], jnp.arange(3)))
        return x @ params["head"], stats

    return lint(apply, params, {}, ROWS)


@program("key-constant", "jaxnorm.linen", where="DropPath_0", deep="remat")
def linen_drop_path_by_a_key_of_its_own_in_a_rematerialized_block(sick: bool) -> Report:
    class Block(nn.Module):
        train: bool

        @nn.compact
        def __call__(self, x):
            branch = nn.relu(nn.Dense(8)(x))
            key = jax.random.key(42) if sick else None
            return x + jaxnorm.linen.DropPath(0.2, deterministic=not self.train)(branch, rng=key)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(4)(nn.remat(Block)(train)(x))

    return lint_linen(Net())
