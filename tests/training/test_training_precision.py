"""Mixed precision: what computes in which type, what stays wide, and gradients."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.training import (
    init_train_state,
    linen_apply,
    make_train_step,
    mixed_precision,
    nnx_apply,
)

OPTIMIZER = optax.adam(0.03)
NORMS = {"ours": jaxnorm.linen.BatchNorm, "flax": nn.BatchNorm}
KEEP = r"(scale|bias)$"


class Net(nn.Module):
    norm: Any = jaxnorm.linen.BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(4, (2,))(x[..., None])
        x = nn.relu(self.norm(use_running_average=not train, dtype=self.dtype)(x)).reshape(len(x), -1)
        return nn.Dense(3)(nn.Dropout(0.2, deterministic=not train)(x))


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)
        self.norm, self.drop = jaxnorm.nnx.BatchNorm(7, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def linen_model(norm: Any = jaxnorm.linen.BatchNorm, dtype: Any = None) -> tuple[Any, Any, Any]:
    net = Net(norm, dtype)
    variables = jax.jit(partial(net.init, train=False))(jax.random.key(0), jnp.ones((2, 5)))
    return linen_apply(net), variables["params"], variables["batch_stats"]


@pytest.fixture(scope="module")
def models(net) -> dict[str, tuple[Any, Any, Any]]:
    return {"bare": tuple(net), "linen": linen_model(), "nnx": nnx_apply(NnxNet())}


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, those of its parts included."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def products(apply: Any, params: Any, stats: Any, x: Any) -> Counter[str]:
    """The types in which a step's matrix products and convolutions are computed, forward and backward."""

    def loss(params: Any) -> jax.Array:
        return apply(jax.random.key(0), params, stats, x, train=True)[0].sum()

    program = jax.make_jaxpr(jax.grad(loss))(params)
    chosen = [e for e in equations(program.jaxpr) if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert len(chosen) >= 3
    return Counter(" ".join(sorted({str(v.aval.dtype) for v in e.invars})) for e in chosen)


@pytest.mark.parametrize("name", ["bare", "linen", "nnx"])
@pytest.mark.parametrize("compute", [jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
def test_all_products_are_narrow_and_what_is_trained_is_wide(models, data, name: str, compute: Any) -> None:
    apply, params, stats = models[name]
    mixed = mixed_precision(apply, compute=compute)
    assert set(products(apply, params, stats, data[0])) == {"float32"}
    assert set(products(mixed, params, stats, data[0])) == {jnp.dtype(compute).name}
    for train in (True, False):
        outputs, new = jax.eval_shape(partial(mixed, train=train), jax.random.key(0), params, stats, data[0])
        assert outputs.dtype == jnp.float32
        chex.assert_trees_all_equal_dtypes(new, stats)


def test_it_trains_about_as_without(models, data) -> None:
    apply, params, stats = models["bare"]
    losses = {}
    for kind, model in {"float32": apply, "bfloat16": mixed_precision(apply)}.items():
        state = init_train_state(jax.random.key(0), params, stats, OPTIMIZER)
        step = jax.jit(make_train_step(model, OPTIMIZER))
        for _ in range(20):
            state, metrics = step(state, data)
        chex.assert_trees_all_equal_shapes_and_dtypes(state.params, params)
        losses[kind] = float(metrics["loss"])
        assert metrics["loss"].dtype == jnp.float32
    assert losses["bfloat16"] != losses["float32"]
    assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)


def test_parameters_that_are_kept_are_not_cast(data) -> None:
    seen: dict[str, Any] = {}

    def apply(key: Any, params: Any, stats: Any, x: Any, *, train: bool, rate: float) -> Any:
        seen.update(params=params, stats=stats, x=x, rate=rate)
        return {"logits": x["image"] @ params["dense"]["kernel"], "index": x["index"]}, stats

    params = {
        "dense": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)},
        "table": jnp.arange(3),
        "wave": jnp.ones(2, jnp.complex64),
    }
    x = {"image": data[0], "index": data[1], "valid": data[1] > 0, "key": jax.random.key(0)}
    outputs, stats = mixed_precision(apply, keep=KEEP)(None, params, {"mean": jnp.ones(3)}, x, train=True, rate=0.5)
    types = {
        jax.tree_util.keystr(path, simple=True, separator="/"): str(a.dtype)
        for path, a in jax.tree.leaves_with_path(seen["params"])
    }
    assert types == {"dense/kernel": "bfloat16", "dense/bias": "float32", "table": "int32", "wave": "complex64"}
    assert {name: str(a.dtype) for name, a in seen["x"].items()} == {
        "image": "bfloat16", "index": "int32", "valid": "bool", "key": "key<fry>",
    }  # fmt: skip
    assert (seen["rate"], seen["stats"]["mean"].dtype, stats["mean"].dtype) == (0.5, jnp.float32, jnp.float32)
    assert {name: str(a.dtype) for name, a in outputs.items()} == {"logits": "float32", "index": "int32"}
    assert_array_equal(seen["x"]["image"], data[0].astype(jnp.bfloat16))


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_a_kept_scale_of_a_flax_norm_needs_a_dtype(data, norm: Any) -> None:
    """Without one the norm gives float32, and so does all that comes after it."""
    apply, params, stats = linen_model(norm)
    assert set(products(mixed_precision(apply), params, stats, data[0])) == {"bfloat16"}
    kept = products(mixed_precision(apply, keep="BatchNorm_0/"), params, stats, data[0])
    assert kept["float32"] > 0
    apply, params, stats = linen_model(norm, jnp.bfloat16)
    assert set(products(mixed_precision(apply, keep="BatchNorm_0/"), params, stats, data[0])) == {"bfloat16"}


def test_a_scale_keeps_small_gradients_and_changes_no_others() -> None:
    def apply(key: Any, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
        return x * params, stats

    def gradients(weight: float, **options: Any) -> Any:
        model = mixed_precision(apply, compute=jnp.float16, **options)
        return jax.grad(lambda p, x: weight * model(None, p, (), x, train=True)[0], (0, 1))(jnp.float32(0.5), jnp.float32(2.0))

    assert_array_equal(gradients(1e-8), (0, 0))
    assert_allclose(gradients(1e-8, loss_scale=2.0**12), (2e-8, 0.5e-8), rtol=1e-2)
    assert_array_equal(gradients(0.25, loss_scale=2.0**12), gradients(0.25))
    assert not np.isfinite(gradients(100.0, loss_scale=2.0**12)).any()  # beyond 65504, to be skipped
    model = mixed_precision(apply, loss_scale=8.0)
    value, tangent = jax.jvp(
        lambda p: model(None, p, (), jnp.float32(2.0), train=True)[0], (jnp.float32(0.5),), (jnp.float32(1.0),)
    )
    assert (value, tangent) == (1, 2)


def test_bad_input_is_named(net, data) -> None:
    with pytest.raises(TypeError, match="compute must be a type of floating point numbers, got 'int8'"):
        mixed_precision(net.apply, compute="int8")
    with pytest.raises(TypeError, match="output must be a type of real floating point numbers, got complex64"):
        mixed_precision(net.apply, output=jnp.complex64)
    with pytest.raises(ValueError, match=r"loss_scale must be in \[1, inf\), got 0.5"):
        mixed_precision(net.apply, loss_scale=0.5)
    with pytest.raises(ValueError, match=r"keep must be a regular expression, got '\('"):
        mixed_precision(net.apply, keep="(")
    model = mixed_precision(net.apply, keep="Dense")
    with pytest.raises(ValueError, match="keep must be in a path of norm/scale, norm/bias, out, w, got 'Dense'"):
        model(jax.random.key(0), net.params, net.stats, data[0], train=True)
