"""How the lint calls a linen model: its flags, its streams of keys, its collections, and which of its noise is silent."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm.linen
from jaxnorm.linen.linting import as_model

X, KEY = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32), jax.random.key(0)


def init(net: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Returns variables of ones, for which nothing is compiled."""
    shapes = jax.eval_shape(functools.partial(net.init, **kwargs), {"params": KEY, "dropout": KEY}, *args)
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)


def program(model: Any, *, train: bool) -> str:
    """Returns the model's program as text."""
    traced = jax.make_jaxpr(functools.partial(model.apply, train=train), return_shape=True)
    closed, (_, stats) = traced(KEY, model.params, model.stats, model.x)
    assert jax.tree.structure(stats) == jax.tree.structure(model.stats)
    return str(closed)


def draws(model: Any) -> list[bool]:
    """Returns whether the model draws, in training and in inference."""
    return ["random_bits" in program(model, train=train) for train in (True, False)]


def run(model: Any, *, train: bool) -> Any:
    return jax.jit(functools.partial(model.apply, train=train))(jax.random.clone(KEY), model.params, model.stats, model.x)


class Net(nn.Module):
    """A model whose flag has any name, as an argument; `of` makes its layers' flag of it."""

    flag: str
    trains_if: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train=None, training=None, is_training=None, deterministic=None) -> jax.Array:
        flags = {"train": train, "training": training, "is_training": is_training, "deterministic": deterministic}
        infers = flags[self.flag] is not self.trains_if
        x = nn.BatchNorm(use_running_average=infers)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=infers)(x))


@pytest.mark.parametrize("flag", ["train", "training", "is_training", "deterministic"])
def test_the_flag_is_found_by_its_name(flag):
    net = Net(flag, trains_if=flag != "deterministic")
    model = as_model(net, init(net, X, **{flag: flag == "deterministic"}), X)
    assert draws(model) == [True, False]
    assert ["reduce_sum" in program(model, train=train) for train in (True, False)] == [True, False]
    assert (model.library, model.silent) == ("linen", ())


def test_a_flag_that_is_a_field_is_set():
    class Field(nn.Module):
        train: bool = True
        dropout: float = 0.5

        @nn.compact
        def __call__(self, x: jax.Array, rate_of: Any = None) -> jax.Array:
            return nn.Dense(2)(nn.Dropout(self.dropout, deterministic=not self.train)(x))

    for train in (True, False):
        model = as_model(Field(train), init(Field(), X), X)
        assert draws(model) == [True, False]


def test_a_flag_may_be_a_field_or_an_argument():
    class Either(nn.Module):
        deterministic: bool | None = None

        @nn.compact
        def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
            return nn.Dropout(0.5, deterministic=nn.merge_param("d", self.deterministic, deterministic))(x)

    for net in (Either(), Either(deterministic=True)):
        model = as_model(net, {}, X)
        assert draws(model) == [True, False]


def test_other_flags_are_given_by_name():
    class Mode(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, mode: str, train: bool = False) -> jax.Array:
            assert not train
            return nn.Dropout(0.5, deterministic=mode != "training")(x)

    model = as_model(Mode(), {}, X, training={"mode": "training"}, inference={"mode": "prediction"})
    assert draws(model) == [True, False]


def test_a_model_without_a_flag_is_called_as_it_is():
    model = as_model(nn.Dense(2), init(nn.Dense(2), X), X)
    assert program(model, train=True) == program(model, train=False)
    assert model.stats == {}


def test_a_tuple_is_all_arguments_and_another_tree_is_one():
    class Sum(nn.Module):
        @nn.compact
        def __call__(self, *xs: Any) -> jax.Array:
            return nn.Dense(len(xs))(sum(jax.tree.leaves(xs)))

    for x, features in (((X, X), 2), ([X, X], 1)):
        variables = {"params": {"Dense_0": {"kernel": np.ones((4, features)), "bias": np.ones(features)}}}
        assert f"f32[16,{features}]" in program(as_model(Sum(), variables, x), train=True)


def test_streams_of_any_name_have_keys_of_their_own():
    class Streams(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> Any:
            drawn = {name: jax.random.normal(self.make_rng(name), (3,)) for name in ("other", "more")}
            return drawn | ({"dropout": jax.random.normal(self.make_rng("dropout"), (3,))} if self.has_rng("dropout") else {})

    model = as_model(Streams(), {}, X)
    drawn, _ = run(model, train=True)
    assert len({float(value[0]) for value in drawn.values()}) == 3
    assert set(run(model, train=False)[0]) == {"other", "more"}


def test_statistics_are_those_of_batch_norms_or_all_collections_by_name():
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            count = self.variable("counts", "calls", lambda: jnp.zeros(()))
            count.value = count.value + 1
            return nn.BatchNorm(use_running_average=not train)(x)

    model = as_model(Counting(), init(Counting(), X, train=True), X)
    assert set(model.stats) == {"batch_stats", "counts"}
    assert run(model, train=True)[1]["counts"]["calls"] == model.stats["counts"]["calls"] + 1
    norm = nn.BatchNorm()
    assert set(as_model(norm, init(norm, X, use_running_average=True), X).stats) == {"mean", "var"}


def test_silent_are_the_layers_that_are_called_in_training_and_never_draw():
    class Silent(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            x = nn.Dropout(0.5, name="forgotten", deterministic=True)(x)
            x = nn.Dropout(0.0, name="idle", deterministic=True)(x)
            x = nn.remat(nn.Dropout)(0.5, name="deep", deterministic=True)(x)
            x = jaxnorm.linen.GaussianNoise(0.1, name="ours")(x, deterministic=np.bool_(True))
            once = nn.Dropout(0.5, name="once")
            x = once(once(x, deterministic=True), deterministic=not train)
            x = nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=True, name="attention")(x)
            return nn.MultiHeadDotProductAttention(2, deterministic=True, name="without")(x)

    x = X[:, None]
    model = as_model(Silent(), init(Silent(), x, train=False), x)
    assert [str(where) for where in model.silent] == ["forgotten", "deep", "ours", "attention"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model": "net"}, "model must be Module, got 'net'"),
        ({"variables": None}, "variables must be Mapping, got None"),
        ({"training": ["train"], "inference": {}}, "training must be Mapping, got"),
    ],
)
def test_what_is_no_model_is_said(change, said):
    given = {"model": nn.Dense(2), "variables": {}, "x": X} | change
    with pytest.raises(TypeError, match=said):
        jaxnorm.linen.lint(**given)


def test_arguments_of_one_mode_alone_are_said():
    with pytest.raises(ValueError, match=r"training and inference must be given together, got .*'mode': 1.* and None"):
        jaxnorm.linen.lint(nn.Dense(2), {}, X, training={"mode": 1})
