"""Layers of PyTorch, Keras, haiku and equinox, trained, imported, and trained on beside ours with their presets; and back."""

import importlib
import inspect
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.peer_layers import GROUPS, LAYERS, PEERS, difference, differences, exported, imported, numbers

import jaxnorm
from jaxnorm.interop import from_equinox, from_haiku, from_keras, from_torch, presets, to_equinox, to_haiku, to_torch
from jaxnorm.interop.presets import _PEERS

pytestmark = pytest.mark.slow
SHAPE = (5, 3, 2, 2 * GROUPS)
EVERY = [(peer, layer) for peer, layers in LAYERS.items() for layer in layers]


@pytest.fixture(autouse=True)
def _as_the_peers_compute() -> Iterator[None]:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def assert_equal(found: dict[str, float], peer: str, dtype: Any) -> None:
    assert {"y", "gradients", "parameters", "inference"} <= set(found)
    # Keras computes in float32 whatever it is given.
    assert max(found.values()) < (1e-5 if peer == "keras" or dtype == np.float32 else 1e-10), found


@pytest.mark.parametrize(("peer", "layer"), EVERY)
def test_training_goes_on_as_there(peer, layer):
    pytest.importorskip(peer)
    found = differences(peer, layer, SHAPE, np.float64)
    assert ("statistics" in found) == layer.startswith(("batch", "tracked"))
    assert_equal(found, peer, np.float64)


@pytest.mark.parametrize("peer", PEERS)
def test_training_goes_on_as_there_in_float32(peer):
    pytest.importorskip(peer)
    assert_equal(differences(peer, "batch_norm", (7, 6), np.float32, seed=3), peer, np.float32)


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize(
    ("peer", "layer"), [("torch", "batch_norm"), ("keras", "batch_renorm"), ("haiku", "batch_norm"), ("equinox", "rms_norm")]
)
def test_modules_train_on_as_there(api, peer, layer):
    pytest.importorskip(peer)
    assert_equal(differences(peer, layer, (7, 6), np.float64, api=api), peer, np.float64)


@pytest.mark.parametrize(("peer", "layer"), EVERY)
def test_entries_go_back_to_the_bit_and_are_taken(peer, layer):
    pytest.importorskip(peer)
    trained, fresh = (PEERS[peer](layer, SHAPE, np.float32) for _ in range(2))
    for i in range(2):
        trained.step(numbers(SHAPE, i), numbers(SHAPE, 10 + i) / 10)
    entries = trained.entries()
    back = exported(peer, layer, *imported(peer, layer, entries), count=2, ndim=len(SHAPE))
    assert jax.tree.structure(back) == jax.tree.structure(entries)
    rounded = {"haiku": ("hidden",), "equinox": ("mean", "var"), "keras": ("moving_variance",)}.get(peer, ())
    for (path, wanted), got in zip(jax.tree.leaves_with_path(entries), jax.tree.leaves(back), strict=True):
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype or path[-1].key == "counter"
        if path[-1].key in rounded:
            np.testing.assert_allclose(got, wanted, rtol=1e-5)
        else:
            np.testing.assert_array_equal(got, wanted)
    fresh.load(back)
    x, g = numbers(SHAPE, 5), numbers(SHAPE, 15) / 10
    assert difference(fresh.infer(x), trained.infer(x)) < 1e-6
    assert difference(fresh.step(x, g).y, trained.step(x, g).y) < 1e-6
    assert difference(fresh.infer(x), trained.infer(x)) < 1e-5


@pytest.mark.parametrize("peer", ["haiku", "equinox"])
def test_averages_without_a_count_go_on_as_plain_ones(peer):
    pytest.importorskip(peer)
    shape = (7, 6)
    theirs = PEERS[peer]("batch_norm", shape, np.float64)
    params, state = jaxnorm.init_batch_norm(6, param_dtype=np.float64, dtype=np.float64)
    to = to_haiku(params, state, ndim=2) if peer == "haiku" else to_equinox(params, state, momentum=0.8)
    theirs.load(to)
    options = presets(peer, **{"decay_rate" if peer == "haiku" else "momentum": 0.8})
    for i in range(2):
        x = numbers(shape, i)
        theirs.step(x, 0 * x)
        _, state = jaxnorm.batch_norm(params, state, jnp.asarray(x), train=True, **options)
    _, found = imported(peer, "batch_norm", theirs.entries())
    np.testing.assert_allclose(found.mean, state.mean, rtol=1e-10)
    np.testing.assert_allclose(found.var, state.var, rtol=1e-10)


# Cumulative averages, and the factor of Bessel


def test_cumulative_averages_of_pytorch():
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(3, momentum=None).double()
    params, state = from_torch({name: value.numpy() for name, value in module.state_dict().items()})
    for count in range(3):
        x = numbers((5, 3), count)
        module(torch.tensor(x))
        options = presets("torch", momentum=None, count=count)
        _, state = jaxnorm.batch_norm(params, state, jnp.asarray(x), train=True, **options)
    np.testing.assert_allclose(state.mean, module.running_mean, rtol=1e-12)
    np.testing.assert_allclose(state.var, module.running_var, rtol=1e-12)
    entries = {name: value.numpy() for name, value in module.state_dict().items()}
    _, found = from_torch(entries, elements=5, momentum=None)
    np.testing.assert_allclose(found.var, np.mean([numbers((5, 3), i).var(0) for i in range(3)], 0), rtol=1e-12)


# Norms of weights


@pytest.mark.parametrize("conv", [False, True])
def test_weight_norm_of_pytorch(conv):
    torch = pytest.importorskip("torch")
    layer = (torch.nn.Conv2d(5, 4, (3, 2)) if conv else torch.nn.Linear(5, 4)).double()
    module = torch.nn.utils.parametrizations.weight_norm(layer)
    pieces = module.parametrizations.weight
    pieces.original0.data *= 1.5
    entries = {name: value.numpy() for name, value in module.state_dict().items() if "parametrizations" in name}
    params = from_torch(entries, layer="weight_norm")

    def moved(a: Any) -> np.ndarray:
        return np.moveaxis(a.detach().numpy(), (0, 1), (-1, -2))

    kernel, pullback = jax.vjp(lambda params: jaxnorm.weight_norm(params, **presets("torch", "weight_norm")), params)
    assert difference(kernel, moved(module.weight)) < 1e-12
    module.weight.square().sum().backward()
    (gradients,) = pullback(2 * kernel)
    assert np.abs(gradients.direction - moved(pieces.original1.grad)).max() < 1e-12  # which is 0: the length alone counts
    assert difference(gradients.gain, pieces.original0.grad.numpy().reshape(-1)) < 1e-12
    back = to_torch(params, layer="weight_norm")
    assert back.keys() == entries.keys()
    for name, array in entries.items():
        np.testing.assert_array_equal(back[name], array)


def test_weight_norm_of_equinox():
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.WeightNorm(eqx.nn.Conv2d(5, 4, (3, 2), dtype=np.float64, use_bias=False, key=jax.random.key(0)))
    module = eqx.tree_at(lambda m: m.g, module, 1.5 * module.g)
    entries = {"weight": module.layer.weight, "g": module.g}
    params = from_equinox(entries, layer="weight_norm")
    kernel = np.moveaxis(jaxnorm.weight_norm(params, **presets("equinox", "weight_norm")), (-1, -2), (0, 1))
    x = jnp.asarray(numbers((5, 6, 6), 0))
    plain = eqx.tree_at(lambda m: m.weight, module.layer, jnp.asarray(kernel))
    assert difference(plain(x), module(x)) < 1e-12
    for name, array in to_equinox(params, layer="weight_norm").items():
        np.testing.assert_array_equal(array, entries[name])


@pytest.mark.parametrize("peer", ["torch", "equinox"])
def test_spectral_norm_that_has_converged(peer):
    pytest.importorskip(peer)
    if peer == "torch":
        torch = importlib.import_module("torch")
        module = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(5, 4, 2, bias=False).double())
        for _ in range(400):
            wanted = module.weight
        entries = {name: value.numpy() for name, value in module.state_dict().items()}
        wanted = wanted.detach().numpy()
        kernel, state = from_torch(entries, layer="spectral_norm")
        back = to_torch(kernel, state, layer="spectral_norm")
    else:
        eqx = importlib.import_module("equinox")
        conv = eqx.nn.Conv2d(5, 4, 2, use_bias=False, dtype=np.float64, key=jax.random.key(0))
        module, start = eqx.nn.make_with_state(eqx.nn.SpectralNorm)(conv, "weight", 400, key=jax.random.key(1))
        _, start = module(jnp.ones((5, 2, 2)), start)
        u, v = start.get(module.uv_index)
        entries = {"weight": conv.weight, "u": u, "v": v}
        kernel, state = from_equinox(entries, layer="spectral_norm")
        wanted = conv.weight / state.sigma
        back = to_equinox(kernel, state, layer="spectral_norm")
    y, new = jaxnorm.spectral_norm(state, kernel, train=True, **presets(peer, "spectral_norm"))
    assert difference(np.moveaxis(y, (-1, -2), (0, 1)), wanted) < 1e-8
    assert difference(new.sigma, state.sigma) < 1e-8
    assert back.keys() == entries.keys()
    for name, array in entries.items():
        np.testing.assert_allclose(back[name], array, atol=1e-6 if name[-1] == "v" else 0)


def test_spectral_norm_of_haiku():
    hk = pytest.importorskip("haiku")
    kernel = jnp.asarray(numbers((2, 3, 4), 0))
    transformed = hk.transform_with_state(lambda kernel: hk.SpectralNorm()(kernel))
    _, kept = transformed.init(jax.random.key(0), kernel)
    _, kept = transformed.apply({}, kept, None, kernel)  # whose sigma init does not make
    state = from_haiku(kept["spectral_norm"], layer="spectral_norm")
    for _ in range(2):
        wanted, kept = transformed.apply({}, kept, None, kernel)
        got, state = jaxnorm.spectral_norm(state, kernel, train=True, **presets("haiku", "spectral_norm"))
        assert difference(got, wanted) < 1e-10
    entries = to_haiku(state, layer="spectral_norm")
    assert entries.keys() == kept["spectral_norm"].keys()
    for name, array in kept["spectral_norm"].items():
        np.testing.assert_allclose(entries[name], array, rtol=1e-10)


def test_spectral_norm_of_keras():
    layers = pytest.importorskip("keras").layers
    module = layers.SpectralNormalization(layers.Dense(4, use_bias=False))
    module.build((None, 3))
    entries = {v.name: np.asarray(v.value) for v in module.weights}
    kernel, state = from_keras(entries, layer="spectral_norm")
    x = numbers((2, 3), 0).astype(np.float32)
    wanted = module(x, training=True)
    got, state = jaxnorm.spectral_norm(state, kernel, train=True, **presets("keras", "spectral_norm"))
    assert difference(x @ np.asarray(got), wanted) < 1e-5
    assert difference(state.u, module.vector_u.value[0]) < 1e-5


def test_mode_ema_of_equinox_in_inference():
    eqx = pytest.importorskip("equinox")
    module, start = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="ema", dtype=np.float64)
    x = jnp.asarray(numbers((5, 3), 0))
    _, start = jax.vmap(module, (0, None), (0, None), "batch")(x, start)
    mean, var = start.get(module.ema_state_index)
    entries = {"weight": module.weight, "bias": module.bias, "mean": mean, "var": var}
    entries["first_time"] = start.get(module.ema_first_time_index)
    params, state = from_equinox(entries, mode="ema")
    frozen = eqx.nn.inference_mode(module)
    wanted, _ = jax.vmap(frozen, (0, None), (0, None), "batch")(x, start)
    got, _ = jaxnorm.batch_norm(params, state, x, train=False)
    assert difference(got, wanted) < 1e-12


# Arguments


OF_PEERS: dict[str, dict[str, str]] = {
    "torch": {
        "batch_norm": "nn.BatchNorm2d",
        "tracked_instance_norm": "nn.InstanceNorm2d",
        "instance_norm": "nn.InstanceNorm2d",
        "layer_norm": "nn.LayerNorm",
        "rms_norm": "nn.RMSNorm",
        "group_norm": "nn.GroupNorm",
        "weight_norm": "nn.utils.parametrizations.weight_norm",
        "spectral_norm": "nn.utils.parametrizations.spectral_norm",
    },
    "keras": {
        "batch_norm": "layers.BatchNormalization",
        "batch_renorm": "layers.BatchNormalization",
        "layer_norm": "layers.LayerNormalization",
        "rms_norm": "layers.RMSNormalization",
        "group_norm": "layers.GroupNormalization",
        "instance_norm": "layers.GroupNormalization",
        "spectral_norm": "layers.SpectralNormalization",
    },
    "haiku": {
        "batch_norm": "BatchNorm",
        "layer_norm": "LayerNorm",
        "rms_norm": "RMSNorm",
        "group_norm": "GroupNorm",
        "instance_norm": "InstanceNorm",
        "spectral_norm": "SpectralNorm",
    },
    "equinox": {
        "batch_norm": "nn.BatchNorm",
        "layer_norm": "nn.LayerNorm",
        "rms_norm": "nn.RMSNorm",
        "group_norm": "nn.GroupNorm",
        "weight_norm": "nn.WeightNorm",
        "spectral_norm": "nn.SpectralNorm",
    },
    "flax": {
        "batch_norm": "linen.BatchNorm",
        "layer_norm": "linen.LayerNorm",
        "rms_norm": "linen.RMSNorm",
        "group_norm": "linen.GroupNorm",
        "instance_norm": "linen.InstanceNorm",
        "weight_norm": "linen.WeightNorm",
        "spectral_norm": "linen.SpectralNorm",
    },
}
OURS_ALONE = ("count", "dtype")


@pytest.mark.parametrize("peer", OF_PEERS)
def test_arguments_and_defaults_of_presets_are_those_of_the_peer(peer):
    package = pytest.importorskip(peer)
    importlib.import_module({"keras": "keras.layers", "flax": "flax.linen"}.get(peer, peer))
    assert OF_PEERS[peer].keys() == _PEERS[peer].keys()
    for layer, name in OF_PEERS[peer].items():
        theirs = inspect.signature(operator.attrgetter(name)(package)).parameters
        for argument, parameter in inspect.signature(_PEERS[peer][layer]).parameters.items():
            if argument in OURS_ALONE:
                continue
            default = theirs[argument].default
            if default is not inspect.Parameter.empty and (peer, argument) != ("equinox", "mode"):
                assert parameter.default == default, (layer, argument)
