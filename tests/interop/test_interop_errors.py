"""What is refused, with every entry that is wrong by its name, and nothing made of the others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.entries import PEERS, C, every, export, numbers, parts_of, take

import jaxnorm
from jaxnorm import interop
from jaxnorm.interop import from_equinox, from_haiku, from_torch, to_equinox, to_haiku, to_torch


def leaves(entries: dict[str, Any]) -> dict[tuple[Any, ...], np.ndarray]:
    """The arrays by their keys, as one dict in another."""
    found = {}
    for name, value in entries.items():
        if isinstance(value, dict):
            found |= {(name, *rest): array for rest, array in leaves(value).items()}
        else:
            found[(name,)] = value
    return found


def nested(arrays: dict[tuple[Any, ...], Any]) -> dict[str, Any]:
    found: dict[Any, Any] = {}
    for keys, array in arrays.items():
        inner = found
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = array
    return found


def path(keys: tuple[Any, ...]) -> str:
    return "/".join("/".join(key) if isinstance(key, tuple) else key for key in keys)


@every
def test_each_entry_that_is_missing_extra_or_misshapen_is_named(peer, layer):
    arrays = leaves(export(peer, layer, *parts_of(peer, layer)))
    for keys, array in arrays.items():
        others = {other: value for other, value in arrays.items() if other != keys}
        if keys != ("num_batches_tracked",) and others:
            with pytest.raises(ValueError, match=f"{path(keys)}' is missing"):
                take(peer, layer, nested(others))
        if len(arrays) > 1:
            twice = np.stack([array, array]) if array.ndim == 0 else array[np.ix_(*([*range(n)] * 2 for n in array.shape))]
            with pytest.raises(ValueError, match=r"shape|number|axis|axes|equal"):
                take(peer, layer, nested({**arrays, keys: twice}))
        for wrong in (None, 1.0, [1.0], "weight", array.astype(np.complex64).astype(object), jax.ShapeDtypeStruct((C,), float)):
            with pytest.raises(TypeError, match=rf"entries\['{path(keys)}'\] must be an? .*array"):
                take(peer, layer, nested({**arrays, keys: wrong}))
    with pytest.raises(ValueError, match="'more' is none of them"):
        take(peer, layer, {**nested(arrays), "more": numbers(C)})
    with pytest.raises(TypeError, match="entries must be a dict of arrays, got"):
        take(peer, layer, list(arrays.values()))


def test_all_that_is_wrong_is_said_at_once():
    entries = to_torch(*parts_of("torch", "batch_norm"))
    del entries["running_mean"]
    entries |= {"running_var": numbers(4), "running_std": numbers(C), "bias": numbers(1, C)}
    with pytest.raises(ValueError, match="entries of PyTorch's batch_norm") as found:
        from_torch(entries)
    for said in (
        "'running_mean' is missing",
        "'running_std' is none of them",
        "'running_var' has shape [4], and 'weight' [3]",
        "'bias' must have one axis, got shape [1, 3]",
    ):
        assert said in str(found.value)


@pytest.mark.parametrize("peer", PEERS)
def test_entries_of_another_layer(peer):
    entries = export(peer, "batch_norm", *parts_of(peer, "batch_norm"))
    with pytest.raises(ValueError, match=r"is none of them.*is none of them"):
        take(peer, "layer_norm", entries)
    with pytest.raises(ValueError, match=r"is missing.*is missing"):
        take(peer, "batch_norm", export(peer, "layer_norm", *parts_of(peer, "layer_norm")))


@pytest.mark.parametrize("peer", PEERS)
def test_layers_that_there_are_not(peer):
    for layer in ("dropout", "switchable_norm", "BatchNorm2d", None, ["batch_norm"]):
        with pytest.raises(ValueError, match=r"layer must be one that .* has, 'batch_norm', "):
            take(peer, layer, {})
        with pytest.raises(ValueError, match=r"layer must be one that .* has, 'batch_norm', "):
            export(peer, layer, *parts_of(peer, "batch_norm"))


@pytest.mark.parametrize("peer", PEERS)
def test_parts_that_do_not_fit(peer):
    params, state = parts_of(peer, "batch_norm")
    with pytest.raises(TypeError, match="params must be AffineParams, got"):
        export(peer, "batch_norm", state, state)
    with pytest.raises(TypeError, match="state must be RunningStats, got"):
        export(peer, "batch_norm", params)
    with pytest.raises(TypeError, match="state must be RunningStats, got"):
        export(peer, "batch_norm", params, jaxnorm.RenormStats(*state))
    with pytest.raises(ValueError, match="state must be left out, since layer_norm has none, got RunningStats"):
        export(peer, "layer_norm", params, state)
    with pytest.raises(ValueError, match=r"'state.var' has shape \[4\], and 'params.scale' \[3\]"):
        export(peer, "batch_norm", params, state._replace(var=jnp.ones(4)))
    with pytest.raises(TypeError, match=r"params.bias must be a NumPy array of floating point numbers, got \[1.0\]"):
        export(peer, "batch_norm", params._replace(bias=[1.0]), state)
    with pytest.raises(TypeError, match=r"state.mean must be an array of floating point numbers, got int32\[3\]"):
        export(peer, "batch_norm", params, state._replace(mean=jnp.ones(C, jnp.int32)))
    with pytest.raises(TypeError, match=r"params.scale must be a concrete array .* got a traced float32\[3\]"):
        jax.eval_shape(lambda params: export(peer, "batch_norm", params, state), params)


def test_a_bias_that_the_peer_does_not_have():
    (params,) = parts_of("torch", "layer_norm")
    for peer in ("torch", "keras", "haiku"):
        with pytest.raises(ValueError, match=r"params.bias must be None, since .* has no bias, got"):
            export(peer, "rms_norm", params)
        with pytest.raises(ValueError, match=r"use_bias must be False, since .* has no bias, got True"):
            take(peer, "rms_norm", export(peer, "rms_norm", params._replace(bias=None)), use_bias=True)


@pytest.mark.parametrize("peer", ["torch", "equinox", "linen", "nnx"])
def test_kernels_that_do_not_fit(peer):
    (params,) = parts_of(peer, "weight_norm")
    kernel, state = parts_of(peer, "spectral_norm")
    with pytest.raises(TypeError, match="params must be WeightNormParams, got"):
        export(peer, "weight_norm", params.direction)
    with pytest.raises(ValueError, match=r"'params.gain' must have shape \[3\], got \[4\]"):
        export(peer, "weight_norm", params._replace(gain=jnp.ones(4)))
    with pytest.raises(ValueError, match="state must be left out, since weight_norm has none"):
        export(peer, "weight_norm", params, state)
    with pytest.raises(TypeError, match="state must be SpectralStats, got"):
        export(peer, "spectral_norm", kernel)
    with pytest.raises(ValueError, match=r"'state.u' must have shape \[3\], got \[4\]"):
        export(peer, "spectral_norm", kernel, state._replace(u=jnp.ones(4)))
    with pytest.raises(ValueError, match=r"state.u must have 1 axes, got shape \[1, 3\]"):
        export(peer, "spectral_norm", kernel, state._replace(u=state.u[None]))
    with pytest.raises(ValueError, match=r"'params' must have two axes or more, got shape \[3\]"):
        export(peer, "spectral_norm", jnp.ones(3), state)


def test_arguments_out_of_range():
    params, state = parts_of("torch", "batch_norm")
    entries = to_torch(params, state)
    for elements in (1, 0):
        with pytest.raises(ValueError, match=f"elements must be at least 2, got {elements}"):
            from_torch(entries, elements=elements)
    with pytest.raises(TypeError, match="elements must be an int"):
        to_torch(params, state, elements=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="elements must be left out, since PyTorch's layer_norm has no running variance, got 8"):
        to_torch(params, layer="layer_norm", elements=8)
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        to_torch(params, state, count=-1)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 2.0"):
        from_torch(entries, elements=8, momentum=2.0)
    with pytest.raises(ValueError, match=r"scale_offset must be in .* got nan"):
        from_torch(entries, scale_offset=np.nan)
    with pytest.raises(ValueError, match="ndim must be given for haiku's batch_norm"):
        to_haiku(params, state)
    with pytest.raises(ValueError, match="decay_rate must be given with a count"):
        to_haiku(params, state, ndim=2, count=3)
    with pytest.raises(ValueError, match=r"decay_rate must be in \[0, 1\), got 1.0"):
        to_haiku(params, state, ndim=2, count=3, decay_rate=1.0)
    with pytest.raises(ValueError, match="channel_axis"):
        to_haiku(params, state, ndim=2, channel_axis=3)
    with pytest.raises(ValueError, match="mode must be 'batch' or 'ema', got 'legacy'"):
        to_equinox(params, state, mode="legacy")
    hidden = to_equinox(params, state, count=0)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1.0"):
        from_equinox(hidden, momentum=1.0)
    with pytest.raises(ValueError, match="'counter' must be at least 1 for debias_var, got 0"):
        from_equinox(hidden, debias_var=True)
    with pytest.raises(ValueError, match="counter must be at least 0, got -1"):
        from_equinox({**hidden, "counter": np.array(-1)})


def test_counters_of_haiku_that_differ():
    entries = to_haiku(*parts_of("haiku", "batch_norm"), ndim=2)
    entries["var_ema"]["counter"] = np.array(3, np.int32)
    with pytest.raises(ValueError, match=r"'mean_ema/counter' and 'var_ema/counter' must be equal, got 1073741824 and 3"):
        from_haiku(entries)


def test_a_tensor_of_pytorch_is_no_array():
    class Tensor:
        dtype, shape = "torch.float32", (C,)

        def __array__(self) -> np.ndarray:
            return numbers(C)

    with pytest.raises(TypeError, match=r"entries\['weight'\] must be a NumPy array of floating point numbers, got .*\(Tensor\)"):
        from_torch({**to_torch(*parts_of("torch", "batch_norm")), "weight": Tensor()})


def test_every_name_is_public_and_documented():
    assert sorted(interop.__all__) == interop.__all__
    for name in interop.__all__:
        value = getattr(interop, name)
        text = value.__doc__
        for section in ("Attributes:",) if isinstance(value, type) else ("Args:", "Returns:", "Raises:", "Example:", ">>> "):
            assert section in text, name
