"""Whole models from and to torch: of a state_dict or a safetensors file, in the layouts of Flax."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnorm.interop._layouts import COUNTER
from jaxnorm.interop._names import NameMap, Names, fitting, name_map
from jaxnorm.interop._plan import make_plan, read_entries
from jaxnorm.interop._trees import tree_of
from jaxnorm.interop.report import ModelReport

Source = Mapping[str, np.ndarray] | str | Path


def from_torch_model(
    source: Source,
    model: Any,
    *,
    names: Names | None = None,
    transposed: Sequence[str] | None = None,
    keep: Sequence[str] = (),
) -> tuple[Any, ModelReport]:
    """Returns a Flax model like the given one with the parameters and running statistics of a torch model, and a report.

    Of convolutions, of any rank, grouped and depthwise ones too, `weight [out, in / groups, ...]` becomes `kernel [..., in /
    groups, out]`; of transposed ones `weight [in, out / groups, ...]` becomes `kernel [..., in / groups, out]`, turned around in
    space; of dense layers `weight [out, in]` becomes `kernel [in, out]`, also where Flax has several axes for either, as for the
    heads of attention. `weight` of an embedding becomes `embedding`, of a norm `scale`, `running_mean` and `running_var` become
    `mean` and `var`. Whatever has equal names and shapes is taken as it is. Nothing is loaded before all fits: one error names
    every entry that has no place, every variable that has no entry, and what does not fit.

    Which module is which path is found, in this order, by `names`; by equal names, but for what stands between their parts
    (`layer1.0.conv1`, `layer1/0/conv1` and `layer1_0/conv1` are equal); by shapes, where a module fits one path alone; and of
    several with equal shapes by the numbers in their names, in order, where these differ in nothing else (`layers.0.fc`,
    `layers.1.fc` and `Block_0/Dense_0`, `Block_1/Dense_0`). What is not clear then is an error that names it. The report says by
    what each was found.

    torch's running variance averages `var n / (n - 1)`, and its momentum is the weight of the new statistics: the layers that go
    on training are `BatchNorm(unbiased=True, momentum=0.9)` for torch's `momentum=0.1`. torch's epsilon is 1e-5 in batch, layer,
    group and instance norm, Flax's 1e-6 in all but the first; that of torch's RMS norm is its type's. torch's images have their
    channels before height and width: a dense layer behind flattened maps needs its inputs in another order, which no shape tells.
    Layers that linen stacks, as `nn.scan` does, are not taken apart, nor is what torch packs: `in_proj_weight` of its attention
    is to be split into three entries before.

    Args:
      source: torch's `state_dict()` as NumPy arrays, `{name: tensor.detach().cpu().numpy() for name, tensor in ...}`, or the path
        of a safetensors file. Pickled files, as torch.save writes, are refused: they can run any program when they are read.
      model: linen variables, as from `module.init` or `jax.eval_shape` of it, an nnx model, or an nnx state. It says the shapes,
        and the types to which numbers are rounded. It is not changed; only parameters and running statistics are replaced.
      names: a map from names of torch modules to paths of the model. The keys are regular expressions of the whole name, and the
        paths may refer to their groups: `{r"layer(\\d)\\.(\\d)\\.(.*)": r"stage\\1_block\\2/\\3"}`. The first key that fits
        counts, but a name itself goes before. None in place of a path leaves the module out, or the entry of this whole name.
      transposed: regular expressions of paths of transposed convolutions. If None they are known by their type in an nnx model,
        and else by the name `ConvTranspose_0` that linen gives. (Those with `transpose_kernel=True` are none here: their kernel
        is torch's, with its axes moved as those of convolutions are.)
      keep: regular expressions of paths, of modules or single variables, that keep their values, as of a new last layer.

    Returns:
      Variables, a model or a state, as model is, and a `ModelReport`, which prints as a table. The arrays are new ones, on the
      devices of the model's.

    Raises:
      ValueError: if entries of source have no place in the model, or variables of the model no entry; if shapes do not fit; if
        numbers are not finite, too large for the model's type, or negative where they are variances; if names, transposed or keep
        have no regular expressions, or names a path or a module that is not there; all entries in one error. If source is no
        safetensors file, or a damaged one.
      TypeError: if source holds anything but NumPy arrays; if model is of another kind.
      ImportError: if source is a file and the package safetensors is not installed.
      OSError: if source cannot be read.

    References:
      Paszke et al., "PyTorch: an imperative style, high-performance deep learning library", NeurIPS 2019,
      https://arxiv.org/abs/1912.01703.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
      >>> from jaxnorm.interop import from_torch_model
      >>> from jaxnorm.linen import BatchNorm
      >>> net = nn.Sequential([nn.Conv(4, (3, 3)), BatchNorm(use_running_average=True), nn.relu])
      >>> variables = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
      >>> state_dict = {
      ...     "conv.weight": np.ones((4, 3, 3, 3), np.float32),
      ...     "conv.bias": np.zeros(4, np.float32),
      ...     "bn.weight": np.ones(4, np.float32),
      ...     "bn.bias": np.zeros(4, np.float32),
      ...     "bn.running_mean": np.zeros(4, np.float32),
      ...     "bn.running_var": np.ones(4, np.float32),
      ...     "bn.num_batches_tracked": np.array(7),
      ... }
      >>> variables, report = from_torch_model(state_dict, variables)
      >>> net.apply(variables, jnp.ones((1, 8, 8, 3))).shape
      (1, 8, 8, 4)
      >>> report.matches[0].path, report.matches[0].layout, report.matches[0].by
      ('layers_0/kernel', '[out, in, ...] -> [..., in, out]', 'shape')
    """
    return _load(read_entries("source", source), model, name_map(names), transposed, keep)


def _load(
    entries: Mapping[str, np.ndarray], model: Any, names: NameMap, transposed: Sequence[str] | None, keep: Sequence[str]
) -> tuple[Any, ModelReport]:
    tree = tree_of("model", model)
    plan = make_plan("source", entries, tree, names=names, transposed=transposed, keep=keep, check_values=True)
    pairs = zip(plan.report.matches, plan.layouts, strict=True)
    return tree.filled({match.path: layout.to_flax(entries[match.torch]) for match, layout in pairs}), plan.report


def to_torch_model(
    model: Any,
    like: Source,
    *,
    names: Names | None = None,
    transposed: Sequence[str] | None = None,
    keep: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Returns the parameters and running statistics of a Flax model as a torch model's state_dict.

    It is `from_torch_model` turned around. `network.load_state_dict({name: torch.from_numpy(array) for name, array in
    state_dict.items()})` takes it (but no bfloat16), and `safetensors.numpy.save_file(state_dict, path)` writes it.

    Args:
      model: linen variables, an nnx model, or an nnx state.
      like: the state_dict of the torch model as NumPy arrays, or a safetensors file. It says the names, shapes and types; of its
        values those remain that the model has no place for: counters of batches, and what names leaves out.
      names: as for `from_torch_model`, from torch to the model too.
      transposed: as for `from_torch_model`.
      keep: regular expressions of paths of the model, of modules or single variables, that torch's has no place for.

    Returns:
      A dict with the names, shapes and types of like, of NumPy arrays that share no memory with anything.

    Raises:
      ValueError, TypeError, ImportError, OSError: as `from_torch_model`, of like.

    References:
      Paszke et al., "PyTorch: an imperative style, high-performance deep learning library", NeurIPS 2019,
      https://arxiv.org/abs/1912.01703.

    Example:
      >>> import numpy as np
      >>> from flax import nnx
      >>> from jaxnorm.interop import to_torch_model
      >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
      >>> like = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
      >>> state_dict = to_torch_model(model, like)
      >>> bool((state_dict["weight"].T == model.kernel[...]).all())
      True
    """
    entries, tree = read_entries("like", like), tree_of("model", model)
    if shapes := [path for path, leaf in tree.leaves.items() if isinstance(leaf, jax.ShapeDtypeStruct)]:
        raise ValueError(f"model must hold arrays, and has a shape alone at {shapes[0]!r}")
    plan = make_plan("like", entries, tree, names=name_map(names), transposed=transposed, keep=keep, check_values=False)
    made = {name: np.array(array) for name, array in entries.items()}
    for match, layout in zip(plan.report.matches, plan.layouts, strict=True):
        value = layout.to_torch(np.asarray(jax.device_get(tree.leaves[match.path])))
        made[match.torch] = np.array(value, made[match.torch].dtype, order="C")
    return made


def variables_from_torch(
    source: Source, *, names: Names | None = None, transposed: Sequence[str] = (), embeddings: Sequence[str] = ()
) -> tuple[dict[str, Any], ModelReport]:
    """Returns a torch model as linen variables, without a Flax model that they should fit, and a report.

    It is what `python -m jaxnorm convert` writes. The layouts are those of `from_torch_model`, as far as the entries alone tell:
    `weight` with three axes or more is a convolution's, with two a dense layer's, with one a norm's. Names become paths:
    `layer1.0.conv1.weight` is `params/layer1/0/conv1/kernel`. With a model at hand `from_torch_model` knows and checks more.

    Args:
      source: as for `from_torch_model`.
      names: as for `from_torch_model`; a path is taken as it is written.
      transposed: regular expressions of names of torch modules that are transposed convolutions, of one group.
      embeddings: regular expressions of names of torch modules that are embeddings.

    Returns:
      `{"params": ..., "batch_stats": ...}`, nested dicts of arrays, and a `ModelReport`.

    Raises:
      ValueError, TypeError, ImportError, OSError: as `from_torch_model`; ValueError also if an expression of transposed or
        embeddings fits no module, and if two entries have one path.

    References:
      Paszke et al., "PyTorch: an imperative style, high-performance deep learning library", NeurIPS 2019,
      https://arxiv.org/abs/1912.01703.

    Example:
      >>> import jax, numpy as np
      >>> from jaxnorm.interop import variables_from_torch
      >>> source = {"head.fc.weight": np.zeros((2, 3), np.float32), "head.fc.bias": np.zeros(2, np.float32)}
      >>> variables, report = variables_from_torch(source, names={r"head\\.(.*)": r"\\1"})
      >>> jax.tree.map(np.shape, variables)
      {'params': {'fc': {'bias': (2,), 'kernel': (3, 2)}}}
    """
    entries, given = read_entries("source", source), name_map(names)
    modules = {name.rpartition(".")[0] for name in entries}
    if wrong := given.unused([*entries, *modules]):
        raise ValueError("; ".join(wrong))
    turned = fitting("transposed", transposed, modules, "source")
    embedded = fitting("embeddings", embeddings, modules, "source")
    found = {module: given.find(module) for module in modules}
    paths = {module: key_and_path[1] if key_and_path else module.replace(".", "/") for module, key_and_path in found.items()}
    paths |= dict.fromkeys(filter(given.refuses, entries))
    blanks: dict[str, jax.ShapeDtypeStruct] = {}
    for name, array in entries.items():
        module, _, leaf = name.rpartition(".")
        path = paths.get(name, paths[module])
        if path is None or leaf == COUNTER:
            continue
        collection, variable, shape = _guessed(leaf, array.shape, module in turned, module in embedded)
        full = "/".join(part for part in (collection, path, variable) if part)
        if full in blanks:
            raise ValueError(f"names must give each module a path of its own, got {path!r} for {module!r} and another")
        blanks[full] = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(array.dtype))
    if not blanks:
        raise ValueError("source must have entries that names does not leave out, got none")
    at = [re.escape(path) for module in turned if (path := paths[module]) is not None]
    variables, report = _load(entries, _nested(blanks), NameMap(paths, ()), at, ())
    by = {module: "names" if found[module] else "equal names" for module in modules}
    return variables, report._replace(
        matches=tuple(match._replace(by=by[match.torch.rpartition(".")[0]]) for match in report.matches)
    )


def _guessed(leaf: str, shape: tuple[int, ...], transposed: bool, embedding: bool) -> tuple[str, str, tuple[int, ...]]:
    """Returns collection, name and shape of the variable that an entry becomes."""
    if leaf in ("running_mean", "running_var"):
        return "batch_stats", leaf.removeprefix("running_"), shape
    if leaf != "weight" or len(shape) < 2:
        return "params", "scale" if leaf == "weight" else leaf, shape
    if embedding:
        return "params", "embedding", shape
    return "params", "kernel", (*shape[2:], *(shape[:2] if transposed else shape[1::-1]))


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts of what is given by path."""
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *outer, name = path.split("/")
        place = nested
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"names must not put modules into variables, got {path!r} beside {part!r}")
        if name in place:
            raise ValueError(f"names must not put modules into variables, got {path!r} for both")
        place[name] = leaf
    return nested
