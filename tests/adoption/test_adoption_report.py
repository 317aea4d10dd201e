"""The report of what was replaced: as data, as a table, and what it says will differ."""

import dataclasses
import re

import jax.numpy as jnp
import pytest
from flax import linen, nnx

from jaxnorm._adoption import AdoptedLayer, Adoption, differences

DIFFERS = ("It differs here", "It differs there")


def some():
    report = Adoption()
    report.add(AdoptedLayer("stem/norm", "flax.nnx.BatchNorm", "jaxnorm.nnx.BatchNorm", differs=DIFFERS, model="Net"))
    report.add(AdoptedLayer("", "flax.nnx.Dropout", "jaxnorm.nnx.Dropout", differs=DIFFERS[1:], model="Net"))
    report.add(AdoptedLayer("norm", "mine.Norm", reason="is a subclass", model="Net"))
    return report


def test_is_data():
    report = some()
    assert [layer.path for layer in report.replaced] == ["stem/norm", ""]
    assert [layer.path for layer in report.left] == ["norm"]
    assert report.layers == (*report.replaced, *report.left)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.layers[0].path = "other"
    assert dataclasses.asdict(report.left[0])["reason"] == "is a subclass"


def test_a_layer_that_was_replaced_once_stays_so():
    report = some()
    report.add(AdoptedLayer("norm", "mine.Other", reason="is left", model="Net"))
    assert report.left[0].layer == "mine.Other"
    report.add(AdoptedLayer("norm", "flax.linen.BatchNorm", "jaxnorm.linen.BatchNorm", model="Net"))
    report.add(AdoptedLayer("norm", "mine.Norm", reason="is left", model="Net"))
    assert not report.left
    report.add(AdoptedLayer("norm", "mine.Norm", reason="is left", model="Other"))
    assert len(report.left) == 1


def test_prints_as_a_table_with_notes():
    lines = str(some()).splitlines()
    assert lines[0] == "2 of 3 layers replaced"
    assert [" ".join(line.split()) for line in lines[1:2] + lines[3:]] == [
        "layer was is differs",
        "stem/norm flax.nnx.BatchNorm jaxnorm.nnx.BatchNorm 1, 2",
        "(the model) flax.nnx.Dropout jaxnorm.nnx.Dropout 2",
        "norm mine.Norm as it was: is a subclass",
        "1. It differs here.",
        "2. It differs there.",
    ]


def test_names_the_models_if_there_are_several():
    report = some()
    assert "Net:" not in str(report)
    report.add(AdoptedLayer("norm", "flax.nnx.RMSNorm", "jaxnorm.nnx.RMSNorm", model="Other"))
    assert "Net: stem/norm" in str(report)
    assert "Other: norm" in str(report)


def test_text_in_brackets_is_no_markup():
    report = Adoption()
    report.add(AdoptedLayer("[bold]norm", "a.Norm", "b.Norm", model="Net"))
    assert "[bold]norm" in str(report)


CANCELS, MASKS, KEPT, ROUNDED = "variance .* is exact", "With a mask", "In training a batch that is not finite", "not rounded to"


@pytest.mark.parametrize(
    ("flax", "name", "options", "expected"),
    [
        ("linen", "BatchNorm", {}, [KEPT, CANCELS, MASKS]),
        ("linen", "BatchNorm", {"use_fast_variance": False}, [KEPT, MASKS]),
        ("linen", "BatchNorm", {"axis_name": "d", "dtype": jnp.bfloat16}, [KEPT, CANCELS, MASKS, "Devices are pooled"]),
        ("linen", "LayerNorm", {"force_float32_reductions": False}, [CANCELS, MASKS, "computed and kept in float32"]),
        ("linen", "RMSNorm", {}, [MASKS]),
        ("linen", "Dropout", {"rate": 0.5}, ["16 random bits an element draw other masks of the same rate"]),
        ("linen", "WeightNorm", {"layer_instance": linen.Dense(1)}, ["What the layer keeps"]),
        ("linen", "SpectralNorm", {"layer_instance": linen.Dense(1)}, ["a kernel that is not finite"]),
        (
            "nnx",
            "BatchNorm",
            {"num_features": 2, "dtype": jnp.bfloat16},
            [KEPT, CANCELS, MASKS, f"statistics are {ROUNDED} bfloat16"],
        ),
        ("nnx", "LayerNorm", {"num_features": 2, "dtype": jnp.float16}, [CANCELS, MASKS, f"Inputs are {ROUNDED} float16 first"]),
        ("nnx", "GroupNorm", {"num_features": 32, "reduction_axes": (1, -1)}, [CANCELS, MASKS, "axes asked for"]),
        ("nnx", "GroupNorm", {"num_features": 32, "dtype": jnp.float32}, [CANCELS, MASKS]),
    ],
)
def test_says_what_will_differ(flax, name, options, expected):
    package = {"linen": linen, "nnx": nnx}[flax]
    module = getattr(package, name)(**options, **({"rngs": nnx.Rngs(0)} if flax == "nnx" else {}))
    found = differences(module, 16, flax)
    assert len(found) == len(expected)
    assert all(re.search(pattern, note) for pattern, note in zip(expected, found, strict=True))
    if name == "Dropout":
        assert differences(module, 32, flax) == ()
