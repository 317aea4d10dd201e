"""Presets: values, arguments of the peers, and what they refuse; the sum of what they do is in the parity tests."""

import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.interop import presets, to_torch
from jaxnorm.interop.presets import _PEERS

CLASSES = {"rms_norm": "RMSNorm"}
REQUIRED: dict[tuple[str, str], dict[str, Any]] = {
    ("haiku", "batch_norm"): {"decay_rate": 0.9},
    ("torch", "group_norm"): {"num_groups": 2},
    ("haiku", "group_norm"): {"groups": 2},
    ("equinox", "group_norm"): {"groups": 2},
}
EVERY = [(peer, layer) for peer, layers in _PEERS.items() for layer in layers]


@pytest.mark.parametrize(("peer", "layer"), EVERY)
def test_options_are_those_of_the_function_and_of_the_modules(peer, layer):
    given = REQUIRED.get((peer, layer), {})
    function = inspect.signature(getattr(jaxnorm, layer)).parameters
    assert set(presets(peer, layer, **given)) <= set(function)
    name = CLASSES.get(layer, layer.title().replace("_", ""))
    for package in (jaxnorm.linen, jaxnorm.nnx):
        options = presets(peer, layer, module=True, **given)
        known = [inspect.signature(kind.__init__).parameters for kind in getattr(package, name).__mro__[:-1]]
        assert set(options) <= set().union(*known)
        assert "steps" not in options


@pytest.mark.parametrize(
    ("peer", "layer", "given", "wanted"),
    [
        ("torch", "batch_norm", {}, {"momentum": 0.9, "epsilon": 1e-5, "unbiased": True}),
        ("torch", "batch_norm", {"momentum": 0.25, "eps": 1e-3}, {"momentum": 0.75, "epsilon": 1e-3, "unbiased": True}),
        ("torch", "batch_norm", {"momentum": None, "count": 0}, {"momentum": 0.0, "epsilon": 1e-5, "unbiased": True}),
        ("torch", "tracked_instance_norm", {"momentum": None}, {"momentum": 1.0, "epsilon": 1e-5, "unbiased": True}),
        ("torch", "rms_norm", {}, {"epsilon": float(np.finfo(np.float32).eps)}),
        ("torch", "rms_norm", {"dtype": jnp.bfloat16}, {"epsilon": float(np.finfo(np.float32).eps)}),
        ("torch", "rms_norm", {"eps": 1e-6}, {"epsilon": 1e-6}),
        ("torch", "spectral_norm", {"n_power_iterations": 3}, {"steps": 3, "epsilon": 1e-24}),
        ("keras", "batch_norm", {}, {"momentum": 0.99, "epsilon": 1e-3}),
        ("keras", "batch_renorm", {}, {"momentum": 0.99, "epsilon": 1e-3, "r_max": np.inf, "d_max": np.inf}),
        (
            "keras",
            "batch_renorm",
            {"renorm_clipping": {"rmin": 1 / 3, "rmax": 3.0, "dmax": 5.0}},
            {"momentum": 0.99, "epsilon": 1e-3, "r_max": 3.0, "d_max": 5.0},
        ),
        ("haiku", "batch_norm", {"decay_rate": 0.9}, {"momentum": 0.9, "epsilon": 1e-5}),
        ("haiku", "batch_norm", {"decay_rate": 0.9, "count": 0}, {"momentum": 0.0, "epsilon": 1e-5}),
        ("equinox", "batch_norm", {}, {"momentum": 0.99, "epsilon": 1e-5}),
        ("flax", "layer_norm", {}, {"epsilon": 1e-6}),
    ],
)
def test_values(peer, layer, given, wanted):
    found = presets(peer, layer, **given)
    assert found == pytest.approx(wanted, rel=1e-12)


def test_parts_of_modules():
    assert presets("torch", "instance_norm", module=True) == {"epsilon": 1e-5, "use_scale": False, "use_bias": False}
    assert presets("torch", "instance_norm", module=True, affine=True) == {"epsilon": 1e-5}
    assert presets("torch", "layer_norm", module=True, bias=False) == {"epsilon": 1e-5, "use_bias": False}
    assert presets("keras", "batch_norm", module=True, center=False)["use_bias"] is False
    assert presets("equinox", "rms_norm", module=True)["use_bias"] is True
    assert "use_bias" not in presets("equinox", "rms_norm", module=True, use_bias=False)
    assert presets("torch", "spectral_norm", module=True)["n_steps"] == 1


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "peer must be 'torch' or 'keras' .* got 'paddle'", lambda: presets("paddle")),
        (ValueError, "layer must be one that haiku has, .* got 'weight_norm'", lambda: presets("haiku", "weight_norm")),
        (ValueError, r"layer must be one that torch has, .* got \['a'\]", lambda: presets("torch", ["a"])),  # type: ignore[arg-type]
        (TypeError, "arguments of torch's batch_norm are eps, momentum, .*, got epsilon", lambda: presets("torch", epsilon=1)),
        (TypeError, "arguments of torch's weight_norm are none, got eps", lambda: presets("torch", "weight_norm", eps=1)),
        (ValueError, "decay_rate must be given for haiku's batch_norm", lambda: presets("haiku")),
        (ValueError, "num_groups must be given for torch's group_norm", lambda: presets("torch", "group_norm")),
        (ValueError, r"momentum must be in \[0, 1\], got 1.5", lambda: presets("torch", momentum=1.5)),
        (ValueError, "count must be given with a momentum of None", lambda: presets("torch", momentum=None)),
        (ValueError, r"count must be in \[0, inf\), got -1", lambda: presets("torch", momentum=None, count=-1)),
        (ValueError, r"decay_rate must be in \[0, 1\), got 1.0", lambda: presets("haiku", decay_rate=1.0)),
        (ValueError, "mode must be 'batch': .* got 'ema'", lambda: presets("equinox", mode="ema")),
        (ValueError, "renorm_momentum must be the momentum", lambda: presets("keras", "batch_renorm", renorm_momentum=0.5)),
        (
            ValueError,
            "must have rmin = 1 / rmax",
            lambda: presets("keras", "batch_renorm", renorm_clipping={"rmax": 3.0, "dmax": 5.0}),
        ),
        (TypeError, "dtype must be a type of floating point numbers", lambda: presets("torch", "rms_norm", dtype="int32")),
    ],
)
def test_what_is_refused(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_a_step_after_import_in_bare_numbers():
    """PyTorch's running averages by hand: a momentum of 0.1 for the new, and the variance of n - 1."""
    params, state = jaxnorm.init_batch_norm(1)
    x = jnp.array([[1.0], [3.0], [8.0]])
    _, state = jaxnorm.batch_norm(params, state, x, train=True, **presets("torch"))
    entries = to_torch(params, state, count=1)
    np.testing.assert_allclose(entries["running_mean"], [0.4], rtol=1e-6)
    np.testing.assert_allclose(entries["running_var"], [0.9 + 0.1 * 13], rtol=1e-6)
