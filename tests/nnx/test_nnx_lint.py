"""How the lint calls an nnx model: its flags, its streams of keys, its variables, and which of its noise is silent."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.nnx
from jaxnorm.nnx.linting import as_model

X, KEY = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32), jax.random.key(0)


def program(model: Any, *, train: bool) -> str:
    """Returns the model's program as text."""
    traced = jax.make_jaxpr(functools.partial(model.apply, train=train), return_shape=True)
    closed, (_, stats) = traced(KEY, model.params, model.stats, model.x)
    assert jax.tree.structure(stats) == jax.tree.structure(model.stats)
    return str(closed)


def draws(model: Any) -> list[bool]:
    """Returns whether the model draws with the key, in training and in inference."""
    return ["random_bits" in program(model, train=train) for train in (True, False)]


class Net(nnx.Module):
    """A model with a layer of each kind, whose own noise needs a flag."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)
        self.rngs = rngs.fork()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.drop(self.norm(x)))


class Flagged(Net):
    """One whose noise is drawn by a flag of the call."""

    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        return jax.random.normal(self.rngs.noise(), x.shape) + x if training else x


class Moded(Net):
    """One with a flag of another name."""

    def __call__(self, x: jax.Array, y: jax.Array, *, mode: str) -> jax.Array:
        return jax.random.normal(self.rngs.noise(), x.shape) + y if mode == "training" else x


def test_modes_are_those_of_train_and_eval():
    net = Net(nnx.Rngs(0))
    model = as_model(net, X)
    assert draws(model) == [True, False]
    assert set(model.params) == {"norm", "last"}
    assert list(model.stats) == ["norm"]
    assert ["reduce_sum" in program(model, train=train) for train in (True, False)] == [True, False]
    assert (model.library, model.silent) == ("nnx", ())
    assert jnp.array_equal(net.norm.mean[...], jnp.zeros(4))
    assert type(net.drop) is nnx.Dropout
    assert not hasattr(net.drop, "on_draw")


def test_a_flag_of_the_call_is_found_or_given_and_a_tuple_is_all_arguments():
    moded = as_model(Moded(nnx.Rngs(0)), (X, X), training={"mode": "training"}, inference={"mode": "prediction"})
    for model in (as_model(Flagged(nnx.Rngs(0)), X), moded):
        assert draws(model) == [True, False]


def test_noise_in_inference_is_drawn_with_the_key():
    class Noisy(Net):
        def __call__(self, x: jax.Array) -> jax.Array:
            return jax.random.normal(self.rngs.noise(), x.shape) + x

    assert draws(as_model(Noisy(nnx.Rngs(0)), X)) == [True, True]


def test_silent_are_the_layers_that_never_draw_in_training():
    class Silent(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.forgotten = nnx.Dropout(0.5, rngs=rngs)
            self.idle = nnx.Dropout(0.0, rngs=rngs)
            self.told = jaxnorm.nnx.GaussianNoise(0.1, rngs=rngs)
            self.once = nnx.Dropout(0.5)
            self.deep = nnx.Dropout(0.5, rngs=rngs)
            self.rngs = rngs.fork()

        def __call__(self, x: jax.Array) -> jax.Array:
            x = self.told(x, deterministic=True)
            x = self.once(self.once(x, deterministic=True), rngs=self.rngs)
            return nnx.remat(lambda drop, x: drop(x))(self.deep, x)

    model = as_model(Silent(nnx.Rngs(0)), X)
    assert sorted(str(where) for where in model.silent) == ["forgotten", "told"]
    assert draws(model) == [True, False]


def test_what_is_no_model_is_said():
    with pytest.raises(TypeError, match="model must be Module, got 'net'"):
        jaxnorm.nnx.lint("net", X)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"training and inference must be given together, got None and {}"):
        jaxnorm.nnx.lint(Net(nnx.Rngs(0)), X, inference={})
