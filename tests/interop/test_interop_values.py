"""What comes in and goes out, by hand and by recursions written in NumPy: no other library is needed."""

from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.entries import PEERS, C, assert_same, every, export, numbers, parts_of, take

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.interop import (
    from_equinox,
    from_haiku,
    from_keras,
    from_linen,
    from_nnx,
    from_torch,
    presets,
    to_equinox,
    to_haiku,
    to_keras,
    to_linen,
    to_nnx,
    to_torch,
)

# Round trips


@every
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_what_goes_out_comes_back_to_the_bit(peer, layer, dtype):
    parts = parts_of(peer, layer, dtype)
    entries = export(peer, layer, *parts)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(entries))
    back = take(peer, layer, entries)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(back))
    if layer == "spectral_norm" and peer in ("torch", "keras", "equinox"):  # which keep no sigma, and u in the kernel's type
        (kernel, state), (old_kernel, old) = back, parts
        np.testing.assert_array_equal(state.u, old.u.astype(dtype))
        back, parts = (kernel,), (old_kernel,)
    assert_same(back, parts)
    again = export(peer, layer, *take(peer, layer, entries))
    assert_same(jax.tree.map(np.asarray, again), jax.tree.map(np.asarray, entries))


@every
def test_in_float64(peer, layer):
    with jax.enable_x64(True):
        parts = jax.tree.map(lambda part: jnp.asarray(part, jnp.float64) / 3, parts_of(peer, layer))
        back = take(peer, layer, export(peer, layer, *parts))
        assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype(np.float64)}
        if layer != "spectral_norm":
            assert_same(back, parts)


@pytest.mark.parametrize("peer", PEERS)
def test_entries_of_half_precision_give_statistics_in_float32(peer):
    entries = jax.tree.map(
        lambda a: a.astype(np.float16) if np.issubdtype(a.dtype, np.floating) else a,
        export(peer, "batch_norm", *parts_of(peer, "batch_norm")),
    )
    params, state = take(peer, "batch_norm", entries)
    assert {part.dtype for part in params} == {np.dtype(np.float16)}
    assert {part.dtype for part in state} == {np.dtype(np.float32)}


@every
def test_nothing_is_shared_with_what_was_given(peer, layer):
    entries = export(peer, layer, *parts_of(peer, layer))
    before = jax.tree.map(np.copy, entries)
    back = take(peer, layer, entries)
    kept = jax.tree.map(np.array, back)
    for array in jax.tree.leaves(entries):
        array[...] = 0
    assert_same(jax.tree.map(np.asarray, back), kept)
    again = export(peer, layer, *jax.tree.map(np.asarray, back))  # containers of NumPy arrays
    for array in jax.tree.leaves(again):
        array[...] = 0
    assert_same(jax.tree.map(np.asarray, back), kept)
    assert any(np.any(array) for array in jax.tree.leaves(before))


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(("use_scale", "use_bias"), [(False, False), (True, False)])
def test_parts_that_are_not_used(peer, use_scale, use_bias):
    params, state = parts_of(peer, "batch_norm")
    params = params._replace(scale=params.scale if use_scale else None, bias=None)
    entries = export(peer, "batch_norm", params, state)
    assert_same(take(peer, "batch_norm", entries, use_scale=use_scale, use_bias=use_bias), (params, state))
    with pytest.raises(ValueError, match="is missing"):
        take(peer, "batch_norm", entries)


@pytest.mark.parametrize("peer", ["torch", "keras", "haiku", "equinox"])
def test_a_scale_that_is_kept_as_its_difference_from_1(peer):
    params, state = parts_of(peer, "batch_norm")
    entries = export(peer, "batch_norm", params, state, scale_offset=1.0)
    plain = export(peer, "batch_norm", params, state)
    name = {"torch": "weight", "keras": "gamma", "haiku": "scale", "equinox": "weight"}[peer]
    np.testing.assert_array_equal(entries.pop(name), plain.pop(name) - 1)
    assert_same(entries, plain)
    back, _ = take(peer, "batch_norm", export(peer, "batch_norm", params, state, scale_offset=1.0), scale_offset=1.0)
    np.testing.assert_allclose(back.scale, params.scale, rtol=1e-6)


@pytest.mark.parametrize(
    ("peer", "names"),
    [
        ("torch", ("weight", "bias", "running_mean", "running_var")),
        ("keras", ("gamma", "beta", "moving_mean", "moving_variance")),
        ("haiku", ("scale", "offset", "mean_ema/average", "var_ema/average")),
        ("equinox", ("weight", "bias", "mean", "var")),
        ("linen", ("params/scale", "params/bias", "batch_stats/mean", "batch_stats/var")),
        ("nnx", ("scale", "bias", "mean", "var")),
    ],
)
def test_which_entry_is_which_part(peer, names):
    (scale, bias), (mean, var) = parts_of(peer, "batch_norm")
    entries = export(peer, "batch_norm", *parts_of(peer, "batch_norm"))
    for name, part in zip(names, (scale, bias, mean, var), strict=True):
        inner = entries
        for key in name.split("/"):
            inner = inner[key]
        np.testing.assert_array_equal(inner.reshape(-1), part)


# PyTorch


def test_names_of_pytorch():
    entries = to_torch(*parts_of("torch", "batch_norm"), count=5)
    assert list(entries) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert entries["num_batches_tracked"].dtype == np.int64
    del entries["num_batches_tracked"]  # as in files before PyTorch 0.4.1, and of frozen batch norms
    assert_same(from_torch(entries), parts_of("torch", "batch_norm"))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_factor_of_bessel(momentum):
    """Averages of one variance with and without it, over some steps from 1, as PyTorch makes them."""
    elements, steps = 5, 7
    variances = np.random.default_rng(0).uniform(1, 9, (steps, C))
    unbiased, biased = np.ones(C), np.ones(C)
    for t, var in enumerate(variances):
        new = 1 / (t + 1) if momentum is None else momentum
        unbiased = (1 - new) * unbiased + new * var * elements / (elements - 1)
        biased = (1 - new) * biased + new * var
    params, state = parts_of("torch", "batch_norm")
    theirs = to_torch(params, state._replace(var=jnp.asarray(unbiased, jnp.float32)), count=steps)
    _, found = from_torch(theirs, elements=elements, momentum=momentum)
    np.testing.assert_allclose(found.var, biased, rtol=1e-6)
    back = to_torch(params, found, elements=elements, momentum=momentum, count=steps)
    np.testing.assert_allclose(back["running_var"], unbiased, rtol=1e-6)
    fresh = to_torch(params, state._replace(var=jnp.ones(C)), count=0)
    assert np.all(from_torch(fresh, elements=elements, momentum=momentum)[1].var == 1)
    no_count = to_torch(params, state, elements=elements)
    np.testing.assert_allclose(no_count["running_var"], np.asarray(state.var) * 1.25, rtol=1e-6)
    _, of_instances = from_torch(no_count, layer="tracked_instance_norm", elements=elements)  # which PyTorch does not count
    np.testing.assert_allclose(of_instances.var, state.var, rtol=1e-6)


def test_axes_of_kernels_of_pytorch():
    (params,) = parts_of("torch", "weight_norm")
    entries = to_torch(params, layer="weight_norm")
    gain, weight = entries["parametrizations.weight.original0"], entries["parametrizations.weight.original1"]
    assert gain.shape == (C, 1, 1, 1)
    assert weight.shape == (C, 5, 2, 2)
    length = np.sqrt((weight**2).sum((1, 2, 3), keepdims=True))
    wanted = np.moveaxis(gain * weight / length, (0, 1), (-1, -2))
    kernel = jaxnorm.weight_norm(from_torch(entries, layer="weight_norm"), **presets("torch", "weight_norm"))
    np.testing.assert_allclose(kernel, wanted, rtol=1e-5)
    older = {"weight_g": gain, "weight_v": weight}
    assert_same(from_torch(older, layer="weight_norm"), params)


def test_spectral_norm_of_pytorch():
    kernel, state = parts_of("torch", "spectral_norm")
    entries = to_torch(kernel, state, layer="spectral_norm")
    weight, u, v = (entries[f"parametrizations.weight.{name}"] for name in ("original", "0._u", "0._v"))
    matrix = weight.reshape(C, -1)
    np.testing.assert_allclose(v, matrix.T @ u / np.linalg.norm(matrix.T @ u), rtol=1e-5)
    older = {"weight_orig": weight, "weight_u": u, "weight_v": v}
    back, found = from_torch(older, layer="spectral_norm")
    np.testing.assert_array_equal(back, kernel)
    np.testing.assert_allclose(found.sigma, u @ matrix @ v, rtol=1e-6)
    zero = to_torch(jnp.zeros((2, C)), state, layer="spectral_norm")
    assert not np.any(zero["parametrizations.weight.0._v"])


def test_a_weight_norm_without_a_gain_has_lengths_of_1_elsewhere():
    (params,) = parts_of("torch", "weight_norm")
    assert np.all(to_torch(params._replace(gain=None), layer="weight_norm")["parametrizations.weight.original0"] == 1)
    bare = params._replace(gain=None)
    for to, of in ((to_linen, from_linen), (to_nnx, from_nnx)):
        assert_same(of(to(bare, layer="weight_norm"), layer="weight_norm", use_scale=False), bare)


# Averages that forget their start


def recursion(start: float, decay: float, batches: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hidden and divided averages after each batch, in float64."""
    hidden, found = np.full(C, start), []
    for t, batch in enumerate(batches, 1):
        hidden = decay * hidden + (1 - decay) * batch
        found.append((hidden, hidden / (1 - decay**t)))
    return found


def haiku_entries(mean: tuple[np.ndarray, np.ndarray], var: tuple[np.ndarray, np.ndarray], count: int) -> dict[str, Any]:
    one = np.ones((1, 1, 1, C), np.float32)
    averages = {
        name: {"hidden": hidden * one, "average": average * one, "counter": np.array(count, np.int32)}
        for name, (hidden, average) in (("mean_ema", mean), ("var_ema", var))
    }
    return {"scale": one, "offset": 0 * one, **averages}


DECAY, STEPS = 0.9, 4
MEANS = np.random.default_rng(1).normal(size=(STEPS, C))


def momenta(peer: str, count: Any) -> Any:
    return presets(peer, **{"decay_rate" if peer == "haiku" else "momentum": DECAY}, count=count)["momentum"]


def test_averages_of_haiku():
    means, variances = recursion(0, DECAY, MEANS), recursion(0, DECAY, MEANS**2)
    entries = haiku_entries(means[1], variances[1], 2)
    params, state = from_haiku(entries)
    np.testing.assert_allclose(state.mean, means[1][1], rtol=1e-6)
    mean = np.asarray(state.mean, np.float64)
    for t in (2, 3):
        m = momenta("haiku", t)
        mean = m * mean + (1 - m) * MEANS[t]
        np.testing.assert_allclose(mean, means[t][1], rtol=1e-6)
    again = to_haiku(params, state, ndim=4, decay_rate=DECAY, count=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, entries)
    plain = to_haiku(params, state, ndim=4)["var_ema"]
    np.testing.assert_array_equal(plain["hidden"], plain["average"])
    assert DECAY ** float(plain["counter"]) == 0


def test_averages_of_equinox():
    means, variances = recursion(0, DECAY, MEANS), recursion(1, DECAY, MEANS**2)
    one = np.ones(C, np.float32)
    entries = {"weight": one, "bias": one, "mean": means[1][0] * one, "var": variances[1][0] * one, "counter": np.array(2)}
    params, state = from_equinox(entries, momentum=DECAY)
    np.testing.assert_allclose(state.mean, means[1][1], rtol=1e-6)
    np.testing.assert_allclose(state.var, variances[1][1], rtol=1e-6)
    var = np.asarray(state.var, np.float64)
    for t in (2, 3):  # what is left of its start of 1 is divided further on, too
        m = momenta("equinox", t)
        var = m * var + (1 - m) * MEANS[t] ** 2
        np.testing.assert_allclose(var, variances[t][1], rtol=1e-6)
    _, clean = from_equinox(entries, momentum=DECAY, debias_var=True)
    np.testing.assert_allclose(clean.var, recursion(0, DECAY, MEANS**2)[1][1], rtol=1e-5)
    again = to_equinox(params, state, momentum=DECAY, count=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, entries)
    fresh = to_equinox(params, state, momentum=DECAY, count=0)
    np.testing.assert_array_equal(fresh["var"], state.var)  # which equinox takes as it is while its counter is 0
    assert_same(from_equinox(fresh, momentum=DECAY), (params, state))


def test_averages_of_equinox_in_mode_ema():
    params, state = parts_of("equinox", "batch_norm")
    entries = to_equinox(params, state, mode="ema")
    assert entries["first_time"].dtype == np.bool_
    assert_same(from_equinox(entries, mode="ema"), (params, state))
    with pytest.raises(ValueError, match="'first_time' must be False"):
        from_equinox({**entries, "first_time": np.array(True)}, mode="ema")


def test_momenta_may_be_traced():
    counts = np.arange(6)
    for peer in ("haiku", "equinox"):
        found = jax.jit(jax.vmap(lambda t, peer=peer: momenta(peer, t)))(counts)
        np.testing.assert_allclose(found, [momenta(peer, int(t)) for t in counts], rtol=1e-5, atol=1e-7)
    cumulative = jax.jit(jax.vmap(lambda t: presets("torch", momentum=None, count=t)["momentum"]))(counts)
    np.testing.assert_allclose(cumulative, counts / (counts + 1), rtol=1e-6)
    assert presets("torch", momentum=None, count=3)["momentum"] == 0.75
    assert momenta("haiku", 0) == 0
    assert momenta("haiku", 10**6) == pytest.approx(DECAY)
    assert presets("haiku", decay_rate=DECAY)["momentum"] == DECAY
    assert presets("haiku", decay_rate=0.0, count=3)["momentum"] == 0


# haiku's axes


@pytest.mark.parametrize(
    ("layer", "channel_axis", "shape"),
    [
        ("batch_norm", -1, (1, 1, 1, C)),
        ("batch_norm", 1, (1, C, 1, 1)),
        ("layer_norm", -1, (C,)),
        ("layer_norm", 1, (1, C, 1, 1)),
        ("group_norm", -1, (C,)),
        ("group_norm", 1, (C, 1, 1)),
        ("instance_norm", 1, (1, C, 1, 1)),
    ],
)
def test_axes_of_haiku(layer, channel_axis, shape):
    parts = parts_of("haiku", layer)
    entries = to_haiku(*parts, layer=layer, ndim=4, channel_axis=channel_axis)
    assert entries["scale"].shape == shape
    assert_same(take("haiku", layer, entries, channel_axis=channel_axis), parts)
    if len(shape) > 1 and layer != "group_norm":
        with pytest.raises(ValueError, match="must have size 1 along every axis but channel_axis"):
            from_haiku(entries, layer=layer, channel_axis=2)


def test_several_axes():
    table = jnp.asarray(numbers(2, C))
    params, state = jaxnorm.AffineParams(table, 2 * table), jaxnorm.RunningStats(3 * table, 4 * table)
    entries = to_haiku(params, state, ndim=4, channel_axis=(1, 3))
    assert entries["offset"].shape == (1, 2, 1, C)
    assert_same(from_haiku(entries, channel_axis=(1, 3)), (params, state))
    for to, of in ((to_linen, from_linen), (to_nnx, from_nnx)):
        assert_same(of(to(params, state)), (params, state))
    for to, of in ((to_torch, from_torch), (to_keras, from_keras), (to_equinox, from_equinox)):
        assert_same(of(to(params, layer="layer_norm"), layer="layer_norm"), params)
        with pytest.raises(ValueError, match="must have one axis"):
            to(params, state)


@pytest.mark.parametrize("peer", ["linen", "nnx"])
def test_complex_statistics(peer):
    params, state = parts_of(peer, "batch_norm")
    state = state._replace(mean=np.asarray(state.mean) * np.complex64(1j))
    found = take(peer, "batch_norm", export(peer, "batch_norm", params, state))
    assert_same(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, (params, state)))


# Keras


def test_renorm_of_keras():
    params, state = parts_of("keras", "batch_renorm")
    entries = to_keras(params, state, layer="batch_renorm", epsilon=0.5)
    np.testing.assert_array_equal(entries["moving_variance"], np.maximum(np.asarray(state.std) ** 2 - np.float32(0.5), 0))
    np.testing.assert_array_equal(entries["renorm_stddev"], entries["moving_stddev"])
    with pytest.raises(ValueError, match="'renorm_mean' must be 'moving_mean'"):
        from_keras({**entries, "renorm_mean": entries["renorm_mean"] + 1}, layer="batch_renorm")


def test_spectral_norm_of_keras_has_the_length_of_what_its_kernel_makes_of_u():
    kernel, state = parts_of("keras", "spectral_norm")
    _, found = from_keras(to_keras(kernel, state, layer="spectral_norm"), layer="spectral_norm")
    np.testing.assert_allclose(found.sigma, np.linalg.norm(np.asarray(kernel).reshape(-1, C) @ state.u), rtol=1e-6)


# Modules


SHAPE = (2, 2, 2, C)
MODULES = {
    "batch_norm": ("BatchNorm", {"use_running_average": True}),
    "layer_norm": ("LayerNorm", {}),
    "rms_norm": ("RMSNorm", {}),
    "group_norm": ("GroupNorm", {"num_groups": 3}),
    "instance_norm": ("InstanceNorm", {}),
    "batch_renorm": ("BatchRenorm", {"use_running_average": True}),
    "tracked_instance_norm": ("TrackedInstanceNorm", {"use_running_average": True}),
}


@pytest.mark.parametrize("layer", MODULES)
def test_variables_of_modules_are_theirs(layer):
    """They have the paths and shapes that modules make, and give what the function gives."""
    name, fields = MODULES[layer]
    x, parts = jnp.asarray(numbers(*SHAPE)), parts_of("linen", layer)
    linen = getattr(jaxnorm.linen, name)(**fields)
    made = jax.eval_shape(lambda: linen.init(jax.random.key(0), x))
    variables = to_linen(*parts, layer=layer)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, made)
    nnx = getattr(jaxnorm.nnx, name)(C, rngs=flax.nnx.Rngs(0), **fields)
    assert jax.tree.map(jnp.shape, to_nnx(*parts, layer=layer)) == jax.tree.map(
        jnp.shape, flax.nnx.to_pure_dict(flax.nnx.state(nnx))
    )
    flax.nnx.update(nnx, to_nnx(*parts, layer=layer))
    assert_same(take("nnx", layer, flax.nnx.to_pure_dict(flax.nnx.state(nnx))), parts)
    np.testing.assert_array_equal(linen.apply(variables, x), nnx(x))


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_variables_of_wrappers_are_theirs(name):
    layer = {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm"}[name]
    parts = parts_of("linen", layer)
    kernel_size, x = (2, 2), jnp.ones((1, 2, 2, 5))
    mode = {"update_stats": False} if name == "SpectralNorm" else {}
    for package, ours in ((flax.linen, jaxnorm.linen), (flax.nnx, jaxnorm.nnx)):
        if package is flax.linen:
            norm = getattr(ours, name)(flax.linen.Conv(C, kernel_size, use_bias=False))
            made: Any = jax.eval_shape(lambda norm=norm: norm.init(jax.random.key(0), x, **mode))
            variables = to_linen(*parts, layer=layer)
        else:
            conv = flax.nnx.Conv(5, C, kernel_size, use_bias=False, rngs=flax.nnx.Rngs(0))
            norm = getattr(ours, name)(conv, rngs=flax.nnx.Rngs(0))
            made = flax.nnx.to_pure_dict(flax.nnx.state(norm))
            variables = to_nnx(*parts, layer=layer)
            flax.nnx.update(norm, variables)
            assert_same(take("nnx", layer, flax.nnx.to_pure_dict(flax.nnx.state(norm))), parts)
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, made)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_an_rms_norm_with_a_bias_as_equinox_has_it(api):
    params = parts_of("equinox", "rms_norm")[0]
    x, options = jnp.asarray(numbers(4, C)), presets("equinox", "rms_norm", module=True)
    assert options == {"epsilon": 1e-5, "use_bias": True}
    wanted = jaxnorm.rms_norm(params, x, **presets("equinox", "rms_norm"))
    if api == "linen":
        got = jaxnorm.linen.RMSNorm(**options).apply(to_linen(params, layer="rms_norm"), x)
        assert_same(from_linen(to_linen(params, layer="rms_norm"), layer="rms_norm", use_bias=True), params)
    else:
        norm = jaxnorm.nnx.RMSNorm(C, rngs=flax.nnx.Rngs(0), **options)
        flax.nnx.update(norm, to_nnx(params, layer="rms_norm"))
        got = norm(x)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_allclose(
        np.asarray(wanted) - np.asarray(params.bias), jaxnorm.rms_norm(params._replace(bias=None), x, epsilon=1e-5), atol=1e-6
    )
