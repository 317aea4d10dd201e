"""Which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

import jaxnorm
from jaxnorm.training import no_decay_mask


def names(mask):
    return {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(mask)}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.WeightNorm(nn.Dense(4))(nn.BatchNorm(use_running_average=True)(x))
        return nn.MultiHeadDotProductAttention(2, normalize_qk=True)(x), None


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x, _ = nn.scan(Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3)()(x, None)
        return nn.Embed(4, 4)(jnp.arange(2)) + x


def test_of_a_linen_model_kernels_and_tables_decay():
    params = jax.eval_shape(Model().init, jax.random.key(0), jnp.ones((2, 4)))["params"]
    mask = no_decay_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert {name for name, value in names(mask).items() if value} == {
        "['Embed_0']['embedding']",
        "['ScanLayer_0']['Dense_0']['kernel']",
        *(f"['ScanLayer_0']['MultiHeadDotProductAttention_0']['{name}']['kernel']" for name in ("key", "out", "query", "value")),
    }


def test_boxes_of_metadata_hide_no_name():
    norm = nn.LayerNorm(
        scale_init=nn.with_partitioning(nn.initializers.ones, ("a", "b")), reduction_axes=(1, 2), feature_axes=(1, 2)
    )
    assert not any(names(no_decay_mask(jax.eval_shape(norm.init, jax.random.key(0), jnp.ones((2, 3, 4)))["params"])).values())


def test_of_an_nnx_model_kernels_decay():
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, optax.adamw(0.1, weight_decay=0.5, mask=no_decay_mask), wrt=nnx.Param)
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    np.testing.assert_allclose(after["layers"][0]["kernel"], 0.95 * before["layers"][0]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(after["layers"][1]["scale"], before["layers"][1]["scale"])


def test_of_a_tree_of_ones_own_and_of_containers():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3), "t": 1.0, "norm": jaxnorm.init_batch_norm(3)[0]}
    assert no_decay_mask(params) == {"w": True, "b": False, "t": False, "norm": jaxnorm.AffineParams(False, False)}
    assert no_decay_mask(jnp.ones((2, 2))) is True
    stacked = jaxnorm.AffineParams(jnp.ones((4, 3)), None)
    assert no_decay_mask([stacked]) == [jaxnorm.AffineParams(False, None)]
    of_haiku = {"batch_norm": {"scale": jnp.ones((1, 3)), "offset": jnp.ones((1, 3))}}
    assert no_decay_mask(of_haiku) == {"batch_norm": {"scale": False, "offset": False}}
