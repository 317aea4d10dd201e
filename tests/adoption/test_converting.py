"""Batch norms converted by path, in linen's contexts and nnx's copies, against the layers that they become; and their reset."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxnorm.linen
import jaxnorm.nnx

pytestmark = pytest.mark.jax_defaults  # Flax's own layers need them
X = np.asarray(2 + 3 * jax.random.normal(jax.random.key(0), (6, 4)), np.float32)
OURS = {
    "batch": ("BatchNorm", {}),
    "frozen": ("FrozenBatchNorm", {}),
    "ghost": ("GhostBatchNorm", {"ghost_size": 2}),
    "group": ("GroupNorm", {"num_groups": 2}),
    "synced": ("BatchNorm", {"axis_name": "devices", "axis_index_groups": None}),
}
each_kind = pytest.mark.parametrize("to", OURS)


class Linen(nn.Module):
    norm: type = nn.BatchNorm
    options: tuple = ()

    @nn.compact
    def __call__(self, x, train=True):
        for name in ("stem", "head"):
            norm = self.norm(momentum=0.5, epsilon=0.1, name=name, **dict(self.options))
            x = nn.relu(norm(x, use_running_average=not train))
        return x


class Nnx(nnx.Module):
    def __init__(self, norm=nnx.BatchNorm, **options):
        self.stem, self.head = (norm(4, momentum=0.5, epsilon=0.1, rngs=nnx.Rngs(0), **options) for _ in range(2))
        self.stem.bias[...] = jnp.arange(4.0)

    def __call__(self, x, train=None):
        for norm in (self.stem, self.head):
            x = nnx.relu(norm(x, use_running_average=None if train is None else not train))
        return x


def variables():
    model = Nnx()
    stats, params = (
        {name: nnx.to_pure_dict(nnx.state(getattr(model, name), kind)) for name in ("stem", "head")} for kind in KINDS
    )
    return {"params": params, "batch_stats": stats}


KINDS = (nnx.BatchStat, nnx.Param)


def by_hand(to, x):
    """Returns what two norms of this kind make of x with the variables of the models, by the modules themselves."""
    name, options = OURS[to]
    given = {"use_running_average": False, "momentum": 0.5} if to in ("batch", "ghost", "synced") else {}
    norm = getattr(jaxnorm.linen, name)(epsilon=0.1, **given, **options)
    for layer in ("stem", "head"):
        own = {collection: tree[layer] for collection, tree in variables().items()}
        y, _ = norm.apply(own, x, mutable=["batch_stats"])
        x = nn.relu(y)
    return x


def over_devices(to, function):
    """Calls a function of x on parts of it, as on several devices, where the norm is synced."""
    if to != "synced":
        return function(X)
    return jax.vmap(function, axis_name="devices")(X.reshape(2, 3, 4)).reshape(X.shape)


@each_kind
def test_linen_norms_are_those_of_this_kind(to):
    name, options = OURS[to]
    model = Linen()
    with jaxnorm.linen.converting(to, **options) as report:
        y = over_devices(to, lambda x: model.apply(variables(), x, mutable=["batch_stats"])[0])
    np.testing.assert_allclose(y, over_devices(to, lambda x: by_hand(to, x)), rtol=1e-5, atol=1e-5)
    assert [(layer.path, layer.became) for layer in report.layers] == [
        (path, f"jaxnorm.linen.{name}") for path in ("stem", "head")
    ]
    assert all(layer.differs for layer in report.layers)


@each_kind
def test_nnx_norms_are_those_of_this_kind(to):
    name, options = OURS[to]
    given = Nnx()
    model, report = jaxnorm.nnx.convert(given, to, **options)
    graphdef, state = nnx.split(model)
    y = over_devices(to, lambda x: nnx.merge(graphdef, state, copy=True)(x, train=True))
    np.testing.assert_allclose(y, over_devices(to, lambda x: by_hand(to, x)), rtol=1e-5, atol=1e-5)
    assert sorted((layer.path, layer.became) for layer in report.layers) == [
        (path, f"jaxnorm.nnx.{name}") for path in ("head", "stem")
    ]
    assert type(given.stem) is nnx.BatchNorm
    assert isinstance(model.stem, getattr(jaxnorm.nnx, name))
    assert hasattr(model.stem, "mean") == (to != "group")


def test_frozen_norms_neither_learn_nor_average_and_can_be_unfrozen():
    frozen, _ = jaxnorm.nnx.freeze(Nnx())
    frozen.train()
    gradients = nnx.grad(lambda model: model(X).sum())(frozen)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(frozen.stem.mean[...], np.zeros(4))
    thawed, report = jaxnorm.nnx.unfreeze(frozen, paths="stem")
    assert [layer.path for layer in report.replaced] == ["stem"]
    assert (type(thawed.stem), type(thawed.head)) == (jaxnorm.nnx.BatchNorm, jaxnorm.nnx.FrozenBatchNorm)
    assert (thawed.stem.momentum, thawed.stem.use_running_average) == (0.5, False)
    thawed(X)
    np.testing.assert_allclose(thawed.stem.mean[...], X.mean(0) / 2, rtol=1e-5)

    with jaxnorm.linen.freezing():
        y, updates = Linen().apply(variables(), X, mutable=["batch_stats"])
    np.testing.assert_allclose(y, frozen(X), rtol=1e-6)
    np.testing.assert_array_equal(updates["batch_stats"]["stem"]["mean"], np.zeros(4))


def test_contexts_in_each_other_share_a_model():
    with jaxnorm.linen.replacing_layers() as replaced, jaxnorm.linen.freezing(paths="stem") as frozen:
        jax.jit(lambda: Linen().apply(variables(), X, mutable=["batch_stats"]))()
    assert [layer.path for layer in frozen.replaced] == ["stem"]
    assert [(layer.path, layer.became) for layer in replaced.replaced] == [("head", "jaxnorm.linen.BatchNorm")]
    with jaxnorm.linen.freezing() as outer, jaxnorm.linen.converting("batch", paths="h*") as inner:
        Linen().apply(variables(), X, mutable=["batch_stats"])
    assert ([layer.path for layer in outer.replaced], [layer.path for layer in inner.replaced]) == (["stem"], ["head"])


def test_paths_are_patterns():
    models = nnx.Sequential(Nnx(), Nnx())
    for paths, expected in {
        "layers/0/*": ["layers/0/head", "layers/0/stem"],
        "*/head": ["layers/0/head", "layers/1/head"],
        ("layers/1/stem", "*/0/stem"): ["layers/0/stem", "layers/1/stem"],
    }.items():
        _, report = jaxnorm.nnx.convert(models, "ghost", paths=paths)
        assert sorted(layer.path for layer in report.replaced) == expected


def test_reset():
    model = Nnx()
    model(X)
    fresh = jaxnorm.nnx.reset(model, paths="stem")
    np.testing.assert_array_equal([fresh.stem.mean[...], fresh.stem.var[...]], [[0.0] * 4, [1.0] * 4])
    np.testing.assert_array_equal(fresh.head.mean[...], model.head.mean[...])
    assert model.stem.mean[...].any()
    _, updates = Linen().apply(variables(), X, mutable=["batch_stats"])
    given = {**variables(), **updates}
    got = jaxnorm.linen.reset(given, paths=["st*m"])
    assert jax.tree.structure(got) == jax.tree.structure(given)
    np.testing.assert_array_equal(got["batch_stats"]["stem"]["var"], np.ones(4))
    np.testing.assert_array_equal(got["batch_stats"]["head"]["var"], given["batch_stats"]["head"]["var"])
    assert given["batch_stats"]["stem"]["mean"].any()
    stats = {"norm": {"mean": nn.Partitioned(jnp.ones((2, 4)), ("layers", None)), "var": jnp.zeros((2, 4))}}
    boxed = jaxnorm.linen.reset({"batch_stats": stats})["batch_stats"]["norm"]
    assert boxed["mean"].names == ("layers", None)
    assert not boxed["mean"].value.any()


class Derived(nn.BatchNorm):
    pass


class NnxDerived(nnx.BatchNorm):
    pass


@pytest.mark.parametrize(
    ("to", "linen", "nnx_model", "reason"),
    [
        ("group", Linen(options=(("axis", 0),)), Nnx(axis=0), "has its features on axis 0, a group norm on the last"),
        (
            "ghost",
            Linen(jaxnorm.linen.BatchNorm, (("unbiased", True),)),
            Nnx(jaxnorm.nnx.BatchNorm, unbiased=True),
            "has unbiased",
        ),
        ("frozen", Linen(Derived), Nnx(NnxDerived), "is a subclass of flax.*BatchNorm"),
    ],
)
def test_norms_that_cannot_be_converted_are_left_and_said(to, linen, nnx_model, reason):
    pattern = rf"paths='\*' match no batch norm.*'{to}'.*; left: .*{reason}"
    with pytest.raises(ValueError, match=pattern), jaxnorm.linen.converting(to):
        jax.eval_shape(lambda: linen.init(jax.random.key(0), X[:4]))
    with pytest.raises(ValueError, match=pattern):
        jaxnorm.nnx.convert(nnx_model, to)


@pytest.mark.parametrize(
    ("to", "options", "error", "message"),
    [
        ("cold", {}, ValueError, "to must be one of batch, frozen, ghost, group, synced, got 'cold'"),
        ("frozen", {"ghost_size": 2}, TypeError, "'frozen' takes no options, got ghost_size=2"),
        ("ghost", {"size": 2}, TypeError, "'ghost' takes ghost_size, got size=2"),
        ("ghost", {"ghost_size": "2"}, TypeError, "ghost_size must be int, got '2'"),
        ("synced", {}, ValueError, "axis_name must be the name of a mapped axis, or several, for 'synced', got None"),
        ("batch", {"paths": 3}, TypeError, "paths must be Sequence, got 3"),
        ("batch", {"paths": [3]}, TypeError, "paths must be str, got 3"),
        ("group", {"num_groups": 3}, ValueError, "num_groups must divide the number of channels, 4, got 3"),
        ("group", {"num_groups": 2, "group_size": 2}, ValueError, "num_groups or group_size must be given, and not both"),
        ("batch", {"paths": "none"}, ValueError, "paths='none' match no batch norm"),
    ],
)
def test_bad_input(to, options, error, message):
    with pytest.raises(error, match=re.escape(message)), jaxnorm.linen.converting(to, **options):
        jax.eval_shape(lambda: Linen().init(jax.random.key(0), X))
    with pytest.raises(error, match=re.escape(message)):
        jaxnorm.nnx.convert(Nnx(), to, **options)


def test_nothing_to_reset():
    for reset, model in ((jaxnorm.nnx.reset, Nnx()), (jaxnorm.linen.reset, variables())):
        with pytest.raises(ValueError, match="paths='none' match no batch norm of"):
            reset(model, paths="none")
    with pytest.raises(ValueError, match="match no batch norm of variables"):
        jaxnorm.linen.reset({"params": {}})
    with pytest.raises(TypeError, match="model must be Module"):
        jaxnorm.nnx.reset(variables())
