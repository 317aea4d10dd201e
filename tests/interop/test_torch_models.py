"""Which entry is which variable, what is said where that is not clear, and what stays as it was."""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_array_equal

import jaxnorm.interop
import jaxnorm.nnx
from jaxnorm.interop import from_torch_model, to_torch_model, variables_from_torch
from jaxnorm.interop._files import write_safetensors


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def model() -> dict[str, Any]:
    """Linen variables of a convolution, its norm and two dense layers."""
    norm = {"scale": zeros(4), "bias": zeros(4)}
    dense = {f"Dense_{i}": {"kernel": zeros(4, 4), "bias": zeros(4)} for i in range(2)}
    return {
        "params": {"Conv_0": {"kernel": zeros(3, 3, 2, 4)}, "norm": norm, **dense},
        "batch_stats": {"norm": {"mean": zeros(4), "var": zeros(4)}},
    }


def source() -> dict[str, np.ndarray]:
    """A state_dict that fits it; every number is different."""
    shapes = {
        "conv.weight": (4, 2, 3, 3), "bn.weight": (4,), "bn.bias": (4,), "bn.running_mean": (4,), "bn.running_var": (4,),
        "fc1.weight": (4, 4), "fc1.bias": (4,), "fc2.weight": (4, 4), "fc2.bias": (4,),
    }  # fmt: skip
    made = {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 100 * i for i, (name, shape) in
            enumerate(shapes.items(), 1)}  # fmt: skip
    return {**made, "bn.num_batches_tracked": np.array(9)}


def without(state: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in names}


def troubles(state: Any, variables: Any, **options: Any) -> list[str]:
    """The lines of the one error."""
    with pytest.raises(ValueError, match="does not fit the model, and nothing was changed") as error:
        from_torch_model(state, variables, **options)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_torch_is_never_imported() -> None:
    folder = Path(jaxnorm.interop.__file__).parent
    imports = [node for path in folder.glob("*.py") for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "names")]
    names = {getattr(node, "module", None) or alias.name for node in imports for alias in node.names}
    assert "numpy" in names
    assert not [name for name in names if name.split(".")[0] in ("torch", "pickle")]


def by(report: Any) -> dict[str, tuple[str, str]]:
    """Path and reason of each module."""
    return {m.torch.rpartition(".")[0]: (m.path.rpartition("/")[0], m.by) for m in report.matches}


# What belongs together


def test_without_a_map_shapes_and_the_order_of_numbers_tell() -> None:
    new, report = from_torch_model(source(), model())
    assert by(report) == {
        "conv": ("Conv_0", "shape"),
        "bn": ("norm", "shape"),
        "fc1": ("Dense_0", "order of numbers"),
        "fc2": ("Dense_1", "order of numbers"),
    }
    state = source()
    assert_array_equal(new["params"]["Conv_0"]["kernel"], state["conv.weight"].transpose(2, 3, 1, 0))
    assert_array_equal(new["params"]["Dense_1"]["kernel"], state["fc2.weight"].T)
    for path, name in {"scale": "weight", "bias": "bias"}.items():
        assert_array_equal(new["params"]["norm"][path], state[f"bn.{name}"])
    for path in ("mean", "var"):
        assert_array_equal(new["batch_stats"]["norm"][path], state[f"bn.running_{path}"])
    assert report.left_out == (("bn.num_batches_tracked", "counters of batches"),)


def test_ten_comes_after_nine() -> None:
    state = {f"blocks.{i}.fc.weight": np.full((2, 2), i, np.float32) for i in (10, 9, 1)}
    new, _ = from_torch_model(state, {"params": {f"Dense_{i}": {"kernel": zeros(2, 2)} for i in (0, 2, 10)}})
    assert {name: float(part["kernel"][0, 0]) for name, part in new["params"].items()} == {
        "Dense_0": 1, "Dense_2": 9, "Dense_10": 10
    }  # fmt: skip


def test_equal_names_go_before_shapes() -> None:
    state = {f"{name}.weight": np.full((2, 2), i, np.float32) for i, name in enumerate(("a.1", "a.0", "b_c"))}
    variables = {
        "params": {"a": {"0": {"kernel": zeros(2, 2)}, "1": {"kernel": zeros(2, 2)}}, "b": {"c": {"kernel": zeros(2, 2)}}}
    }
    new, report = from_torch_model(state, variables)
    assert by(report) == {"a.1": ("a/1", "equal names"), "a.0": ("a/0", "equal names"), "b_c": ("b/c", "equal names")}
    assert float(new["params"]["a"]["0"]["kernel"][0, 0]) == 1


def test_a_map_goes_before_all() -> None:
    """A name itself, then the first expression that fits; groups are handed on; the rest is found as without a map."""
    _, report = from_torch_model(source(), model(), names={r"fc(\d)": r"Dense_\1", "fc2": "Dense_0", "bn": "norm"})
    assert by(report) == {
        "conv": ("Conv_0", "shape"), "bn": ("norm", "names"), "fc1": ("Dense_1", "names"), "fc2": ("Dense_0", "names")
    }  # fmt: skip


def test_a_path_may_be_written_as_torch_writes_it() -> None:
    state = {"module.layer1.0.weight": zeros(3, 2), "module.layer1.1.weight": zeros(3, 2)}
    variables = {"params": {"layer1_0": {"kernel": zeros(2, 3)}, "layer1_1": {"kernel": zeros(2, 3)}}}
    _, report = from_torch_model(state, variables, names={r"module\.(.*)": r"\1"})
    assert by(report)["module.layer1.1"] == ("layer1_1", "names")


def test_modules_and_entries_can_be_left_out_and_variables_kept() -> None:
    state = {**source(), "head.weight": zeros(10, 4), "bn.index": np.arange(3)}
    variables = model()
    variables["params"]["new"] = {"kernel": np.full((4, 3), 7.0, np.float32)}
    new, report = from_torch_model(state, variables, names={"head": None, r".*\.index": None}, keep=["new"])
    assert_array_equal(new["params"]["new"]["kernel"], 7)
    assert {name: why for name, why in report.left_out if why == "by names"}.keys() == {"head.weight", "bn.index"}
    assert report.kept == ("new/kernel",)
    back = to_torch_model(new, state, names={"head": None, r".*\.index": None}, keep=["new"])
    for name, array in state.items():
        assert_array_equal(back[name], array)


def test_parameters_of_other_names_are_taken_as_they_are() -> None:
    state = {"cls_token": np.ones((1, 1, 4), np.float32), "block.gamma": np.ones(4, np.float32)}
    new, _ = from_torch_model(state, {"params": {"cls_token": zeros(1, 1, 4), "block": {"gamma": zeros(4)}}})
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(new))


# What does not fit is named, all of it


def test_all_troubles_are_in_one_error() -> None:
    state = without(source(), "fc1.bias", "bn.running_var")
    state |= {"conv.weight": zeros(4, 2, 5, 5), "extra.weight": zeros(9), "bn.bias": zeros(4, dtype=np.int32)}
    state["fc2.bias"] = np.array([0, np.nan, 1, np.inf], np.float32)
    names = {"conv": "Conv_0", "bn": "norm", "fc1": "Dense_0", "fc2": "Dense_1"}
    assert sorted(troubles(state, model(), names=names)) == [
        "extra: extra.weight (float32[9]) has no place in the model",
        "misshapen: conv.weight must be [4, 2, 3, 3], for the model's Conv_0/kernel (float32[3, 3, 2, 4]), got [4, 2, 5, 5]",
        "missing: the model's Dense_0/bias (float32[4]) has no entry",
        "missing: the model's norm/var (float32[4]) has no entry",
        "not finite: fc2.bias has 2 of 4 numbers that are NaN or infinite",
        "of another type: bn.bias must hold floating point numbers, got int32[4]",
    ]


def test_what_is_not_clear_is_not_guessed() -> None:
    """Of equal shapes, and of names that differ in more than numbers."""
    state = {"q.weight": zeros(4, 4), "k.weight": zeros(4, 4)}
    variables = {"params": {name: {"kernel": zeros(4, 4)} for name in ("query", "key")}}
    found = troubles(state, variables)
    assert len(found) == 4
    with pytest.raises(ValueError, match="names says which module is which path"):
        from_torch_model(state, variables)
    assert all(any(name in line for line in found) for name in ("q.weight", "k.weight", "query/kernel", "key/kernel"))
    more = {**variables["params"], "Dense_0": {"kernel": zeros(4, 4)}}
    assert len(troubles(state, {"params": more})) == 5


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: {"names": {"conv": "Conv_9"}}, "names has 'Conv_9' for 'conv', and the model has no such path"),
        (lambda s: {"names": {"cnov": "Conv_0"}}, "names has 'cnov', and there is no such module"),
        (lambda s: {"names": {r"fc\d": "Dense_0"}}, "more than one: the model's 'Dense_0' is meant by 'fc1' and 'fc2'"),
        (lambda s: s.update({"bn.running_var": np.array([1, -2, 0, 1], np.float32)}), "negative: bn.running_var"),
        (lambda s: s.update({"conv.bias": zeros(4)}), "extra: conv.bias"),
        (lambda s: s.update({"bn.scale": zeros(4)}), "more than one: the model's norm/scale"),
        (lambda s: s.update({"fc1.bias": np.full(4, 1e60)}), "too large: fc1.bias"),
        (lambda s: s.update({"fc1.bias": zeros(4, dtype=np.complex64)}), "of another type: fc1.bias"),
        (lambda s: s.update({"fc1.bias": zeros(4, dtype=bool)}), "of another type: fc1.bias"),
        (lambda s: s.update({"fc1.bias": zeros(1)}), "misshapen: fc1.bias must be [4]"),
        (lambda s: s.update({"fc1.weight": zeros(4)}), "misshapen: fc1.weight must be [4, 4]"),
        (lambda s: s.update({"fc1.weight": zeros(4, 4, 1, 1)}), "misshapen: fc1.weight must be [4, 4]"),
    ],
)  # fmt: skip
def test_one_trouble_is_named(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    state = source()
    options = {"names": {"conv": "Conv_0", "bn": "norm", "fc1": "Dense_0", "fc2": "Dense_1"}}
    options = change(state) or options
    variables = model()
    assert any(line.startswith(words) for line in troubles(state, variables, **options))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(variables))


class Tensor:
    """As one of torch."""

    def detach(self) -> None: ...


@pytest.mark.parametrize(
    "arguments, options, error, words",
    [
        (({"w": Tensor()}, model()), {}, TypeError, r"source\['w'\] must be a NumPy array, got Tensor; tensor\.detach"),
        (({"state_dict": {}}, model()), {}, TypeError, r"source\['state_dict'\] must be a NumPy array, got dict"),
        (({0: zeros(1)}, model()), {}, TypeError, "source must have names as keys, got 0"),
        (({}, model()), {}, ValueError, "source must have entries, got none"),
        ((3, model()), {}, TypeError, "source must be a dict of NumPy arrays or the path of a safetensors file, got int"),
        ((source(), nn.Dense(3)), {}, TypeError, "model must be linen variables.*got Dense; give its variables"),
        ((source(), [1]), {}, TypeError, "model must be linen variables.*got list"),
        ((source(), {"kernel": zeros(3)}), {}, ValueError, "model must be .* got a dict without 'params', but with .'kernel'"),
        ((source(), {"params": {}}), {}, ValueError, "model must have parameters or running statistics, got none"),
        ((source(), {"params": {"a": zeros(1)}, "batch_stats": {"a": zeros(1)}}), {}, ValueError, "one name in params and in"),
        ((source(), model()), {"names": {"(": "a"}}, ValueError, r"names must have regular expressions as keys, got '\('"),
        ((source(), model()), {"names": {"b.": r"\3"}}, ValueError, r"names\['b\.'\] must be a path, or refer to groups"),
        ((source(), model()), {"names": {"bn": 3}}, TypeError, r"names\['bn'\] must be a path or None, got 3"),
        ((source(), model()), {"names": ["bn"]}, TypeError, "names must be a dict of names of torch modules to paths"),
        ((source(), model()), {"keep": "norm"}, TypeError, "keep must be a sequence of regular expressions, got 'norm'"),
        ((source(), model()), {"keep": ["nrom"]}, ValueError, "keep has 'nrom', and the model has no such name"),
        ((source(), model()), {"keep": ["["]}, ValueError, r"keep must be regular expressions, got '\['"),
        ((source(), model()), {"transposed": ["up"]}, ValueError, "transposed has 'up', and the model has no such name"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(arguments: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        from_torch_model(*arguments, **options)


def test_models_of_what_is_no_number_are_named() -> None:
    with pytest.raises(TypeError, match=r"model must hold arrays, got 3\.0 at 'fc/bias'"):
        from_torch_model(source(), {"params": {"fc": {"bias": 3.0}}})
    (line,) = troubles({"fc.bias": zeros(2)}, {"params": {"fc": {"bias": zeros(2, dtype=np.int32)}}})
    assert line == "of another type: the model's fc/bias (int32[2]) must hold floating point numbers for fc.bias"
    (line,) = troubles({"fc.bias": np.full(2, 1e5)}, {"params": {"fc": {"bias": zeros(2, dtype=np.float16)}}})
    assert line == "too large: fc.bias has numbers up to 100000, more than the model's float16 holds"
    with pytest.raises(ValueError, match="model must hold arrays, and has a shape alone at 'fc/bias'"):
        to_torch_model({"params": {"fc": {"bias": jax.ShapeDtypeStruct((2,), np.float32)}}}, {"fc.bias": zeros(2)})


def test_the_way_back_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"like does not fit the model(.|\n)*Dense_1/kernel.*has no entry"):
        to_torch_model(model(), without(source(), "fc2.weight", "fc2.bias"), names={"fc1": "Dense_0"})


# What is given, and what stays


def test_numbers_are_rounded_to_the_model_s_types_and_the_report_says_so() -> None:
    state = {"fc.weight": np.full((2, 2), 1 / 3, np.float64), "bn.weight": np.full(2, 0.5, ml_dtypes.bfloat16)}
    variables = {"params": {"fc": {"kernel": jnp.zeros((2, 2), jnp.bfloat16)}, "bn": {"scale": zeros(2)}}}
    new, report = from_torch_model(state, variables)
    assert new["params"]["fc"]["kernel"].dtype == jnp.bfloat16
    assert new["params"]["bn"]["scale"].dtype == np.float32
    assert "1 are float64 in torch and bfloat16 in the model." in str(report)
    assert "1 are bfloat16 in torch and float32 in the model." in str(report)
    back = to_torch_model(new, state)
    assert {name: array.dtype for name, array in back.items()} == {name: array.dtype for name, array in state.items()}


def test_nothing_shares_memory_with_torch() -> None:
    """Torch's arrays are changed in place by the next step of training."""
    state = source()
    new, _ = from_torch_model(state, model())
    before = jax.tree.map(np.array, new)
    back = to_torch_model(new, state)
    for array in state.values():
        array[...] = 7
    jax.tree.map(assert_array_equal, new, before)
    assert all(array.flags.writeable and array.flags.owndata and array.flags.c_contiguous for array in back.values())
    assert not (back["fc1.bias"] == 7).all()


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_as_good_as_a_dict(kind: type, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    state, path = source(), tmp_path / "model.safetensors"
    write_safetensors(path, state)
    new, report = from_torch_model(kind(path), model())
    wanted, of_dict = from_torch_model(state, model())
    jax.tree.map(assert_array_equal, new, wanted)
    assert sorted(report.matches) == sorted(of_dict.matches)
    for name, array in to_torch_model(new, kind(path)).items():
        assert_array_equal(array, state[name])


def test_containers_boxes_and_other_collections_stay() -> None:
    box = nn.Partitioned(jnp.zeros((4, 2)), names=("in", None))
    variables = FrozenDict({"params": {"fc": {"kernel": box}}, "cache": {"fc": {"index": jnp.ones(3)}}})
    new, _ = from_torch_model({"fc.weight": np.ones((2, 4), np.float32)}, variables)
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    assert (new["params"]["fc"]["kernel"].value == 1).all()
    assert (new["cache"]["fc"]["index"] == 1).all()


@pytest.mark.parametrize("abstract", [False, True])
def test_arrays_come_with_the_model_s_sharding(abstract: bool) -> None:
    mesh = jax.make_mesh((8,), ("data",))
    sharding = NamedSharding(mesh, P(None, "data"))
    leaf = jax.ShapeDtypeStruct((4, 8), np.float32, sharding=sharding) if abstract else jax.device_put(zeros(4, 8), sharding)
    weight = np.arange(32, dtype=np.float32).reshape(8, 4)
    new, _ = from_torch_model({"fc.weight": weight}, {"params": {"fc": {"kernel": leaf}}})
    assert new["params"]["fc"]["kernel"].sharding == sharding
    assert_array_equal(to_torch_model(new, {"fc.weight": zeros(8, 4)})["fc.weight"], weight)


class Net(nnx.Module):
    """A dense layer, its norm and dropout, in a list."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(3, 2, rngs=rngs), jaxnorm.nnx.BatchNorm(2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])


@pytest.mark.parametrize("kind", ["model", "state"])
def test_an_nnx_model_stays_as_it_was_and_so_do_its_other_variables(kind: str) -> None:
    net = Net()
    state = {
        "layers.0.weight": np.ones((2, 3), np.float32), "layers.0.bias": np.ones(2, np.float32),
        **{f"layers.1.{name}": np.ones(2, np.float32) for name in ("weight", "bias", "running_mean", "running_var")},
    }  # fmt: skip
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(net, nnx.Param, nnx.BatchStat)[0]))
    new, report = from_torch_model(state, net if kind == "model" else nnx.state(net))
    assert by(report)["layers.1"] == ("layers/1", "equal names")
    found = nnx.state(new) if kind == "model" else new
    assert isinstance(new, Net if kind == "model" else nnx.State)
    assert jax.tree.structure(found) == jax.tree.structure(nnx.state(net))
    assert all((found["layers"][0][name][...] == 1).all() for name in ("kernel", "bias"))
    assert all((found["layers"][1][name][...] == 1).all() for name in ("scale", "bias", "mean", "var"))
    jax.tree.map(assert_array_equal, before, nnx.to_pure_dict(nnx.state(net, nnx.Param, nnx.BatchStat)[0]))
    streams = [nnx.to_pure_dict(nnx.filter_state(s, nnx.RngState)) for s in (nnx.state(net), found)]
    jax.tree.map(lambda a, b: assert_array_equal(jax.random.key_data(a) if a.dtype != np.uint32 else a,
                                                 jax.random.key_data(b) if b.dtype != np.uint32 else b), *streams)  # fmt: skip


def test_the_report_is_a_table() -> None:
    _, report = from_torch_model(source(), model())
    text = str(report)
    line = next(line for line in text.splitlines() if "conv.weight" in line)
    for words in ("[4, 2, 3, 3]", "Conv_0/kernel", "[3, 3, 2, 4]", "[out, in, ...] -> [..., in, out]", "shape"):
        assert words in line
    assert "9 entries have a place." in text
    assert "unbiased=True, momentum=0.9" in text
    assert report.matches[0]._asdict() == {
        "torch": "conv.weight", "path": "Conv_0/kernel", "torch_shape": (4, 2, 3, 3), "shape": (3, 3, 2, 4),
        "layout": "[out, in, ...] -> [..., in, out]", "by": "shape", "dtypes": ("float32", "float32"),
    }  # fmt: skip


# Without a model


def test_variables_without_a_model() -> None:
    state = {**source(), "emb.weight": zeros(7, 3), "up.weight": zeros(2, 5, 3), "cls": zeros(1, 1)}
    names = {r"fc(\d)": r"head/Dense_\1", "cls": None}
    variables, report = variables_from_torch(state, names=names, transposed=["up"], embeddings=["emb"])
    assert jax.tree.map(np.shape, variables) == {
        "params": {
            "conv": {"kernel": (3, 3, 2, 4)},
            "bn": {"scale": (4,), "bias": (4,)},
            "head": {f"Dense_{i}": {"kernel": (4, 4), "bias": (4,)} for i in (1, 2)},
            "emb": {"embedding": (7, 3)},
            "up": {"kernel": (3, 2, 5)},
        },
        "batch_stats": {"bn": {"mean": (4,), "var": (4,)}},
    }
    assert by(report)["conv"] == ("conv", "equal names")
    assert by(report)["fc1"] == ("head/Dense_1", "names")
    assert ("cls", "by names") in report.left_out


@pytest.mark.parametrize(
    "state, options, words",
    [
        ({"a.weight": zeros(2)}, {"embeddings": ["b"]}, "embeddings has 'b', and source has no such name"),
        ({"a.weight": zeros(2)}, {"names": {"a": None}}, "source must have entries that names does not leave out"),
        ({"a.weight": zeros(2), "b.weight": zeros(2)}, {"names": {".": "c"}}, "a path of its own, got 'c' for 'b' and another"),
        ({"x": zeros(2), "m.weight": zeros(2)}, {"names": {"": "a", "m": "a/x"}}, "must not put modules into variables"),
        ({"a.weight": np.full(2, np.nan)}, {}, "not finite: a.weight"),
        ({"a.ids": np.arange(3)}, {}, "of another type: a.ids"),
        ({"a.weight": zeros(2)}, {"names": {"b": "c"}}, "names has 'b', and there is no such module"),
    ],
)
def test_what_makes_no_variables_is_named(state: Any, options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        variables_from_torch(state, **options)
