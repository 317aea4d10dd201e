"""Norm layers of a checkpoint on disk: how large they are, what their statistics are, and which channels are ill."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxnorm.interop._files import read_safetensors
from jaxnorm.interop._layouts import COUNTER

DEAD_VARIANCE = 1e-7
"""A running variance below this is that of a channel that never varies: a hundredth of the usual epsilon."""

_COLLECTIONS = ("params", "batch_stats", "stats")  # which hold the parts of one layer
_OTHERS = ("opt_state", "optimizer")  # whose averages have the names of parameters
_MEANS, _VARIANCES, _SCALES = ("mean", "running_mean"), ("var", "running_var"), ("scale", "weight")
_PARTS = (*_MEANS, *_VARIANCES, *_SCALES, "bias", COUNTER)
_METADATA = "_METADATA"  # the file that is in each folder of arrays that Orbax writes

Range = tuple[float, float] | None


class NormSummary(NamedTuple):
    """A norm layer of a checkpoint.

    Attributes:
      path: where it is, as `layer1/0/bn1`.
      shape: the shape of its statistics, or of its scale where it has none.
      mean: least and largest running mean that is finite; None for a layer without.
      var: least and largest running variance, likewise.
      scale: least and largest scale, likewise.
      dead: number of channels whose running variance is below 1e-7: they never vary.
      not_finite: number of channels with a parameter or a statistic that is NaN or infinite.
      never_updated: number of channels with a running mean of 0 and a running variance of 1, as a new layer has.
      batches: what torch counted the batches as, None where nothing counts them.
    """

    path: str
    shape: tuple[int, ...]
    mean: Range
    var: Range
    scale: Range
    dead: int
    not_finite: int
    never_updated: int
    batches: int | None


def inspect_checkpoint(path: str | Path) -> tuple[NormSummary, ...]:
    """Returns the norm layers of a checkpoint: their sizes, the ranges of their numbers, and how many channels are ill.

    A layer has a running mean and a running variance, or a scale. Only what may belong to norms is read; an optimizer's averages
    are no layers. Of complex means the modulus is shown.

    Args:
      path: a safetensors file, of torch or Flax; or a folder that Orbax wrote, also that of a run, as of
        `jaxnorm.training.save_checkpoint`, of which the newest step is taken.

    Returns:
      A `NormSummary` for each layer, in the order of the checkpoint.

    Raises:
      ValueError: if path is no such file or folder, or damaged; if it has no norm layers.
      ImportError: if path is a file and the package safetensors is not installed.
      OSError: if path cannot be read.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, https://arxiv.org/abs/1502.03167.

    Example:
      >>> import jax, jax.numpy as jnp, optax, tempfile, jaxnorm
      >>> from jaxnorm.interop import inspect_checkpoint
      >>> from jaxnorm.training import init_train_state, save_checkpoint
      >>> params, stats = jaxnorm.init_batch_norm(3)
      >>> stats = stats._replace(var=jnp.array([1.0, 0.0, 2.0]))
      >>> folder = tempfile.mkdtemp()
      >>> save_checkpoint(folder, init_train_state(jax.random.key(0), {"norm": params}, {"norm": stats}, optax.sgd(0.1)))
      >>> layer, = inspect_checkpoint(folder)
      >>> layer.path, layer.shape, layer.var, layer.dead, layer.never_updated
      ('norm', (3,), (0.0, 2.0), 1, 1)
    """
    path = Path(path).expanduser()
    arrays = _read_orbax(path) if path.is_dir() else _read_file(path)
    layers: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for (*outer, name), array in arrays.items():
        if not set(outer) & set(_OTHERS):
            layers["/".join(part for part in outer if part not in _COLLECTIONS)][name] = array
    found = tuple(_summary(layer, parts) for layer, parts in layers.items() if _is_norm(parts))
    if not found:
        raise ValueError(f"{str(path)!r} must have norm layers, and has none among {len(layers)} groups of arrays")
    return found


def _is_norm(parts: Mapping[str, np.ndarray]) -> bool:
    mean, var, scale = (_first(parts, names) for names in (_MEANS, _VARIANCES, _SCALES))
    if mean is not None and var is not None:
        return mean.shape == var.shape
    return scale is not None and scale.size > 1


def _summary(path: str, parts: Mapping[str, np.ndarray]) -> NormSummary:
    mean, var, scale = (_first(parts, names) for names in (_MEANS, _VARIANCES, _SCALES))
    if mean is None or var is None:
        mean = var = None
    there = [array for array in (mean, var, scale, parts.get("bias")) if array is not None]
    ill: dict[tuple[int, ...], Any] = {}
    for array in there:
        ill[array.shape] = ill.get(array.shape, False) | ~np.isfinite(array)
    counted = parts.get(COUNTER)
    return NormSummary(
        path=path,
        shape=there[0].shape,
        mean=_range(mean),
        var=_range(var),
        scale=_range(scale),
        dead=0 if var is None else int(np.sum(var < DEAD_VARIANCE)),
        not_finite=int(sum(mask.sum() for mask in ill.values())),
        never_updated=0 if mean is None or var is None else int(np.sum((mean == 0) & (var == 1))),
        batches=None if counted is None else int(np.max(counted, initial=0)),
    )


def _first(parts: Mapping[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    return next((parts[name] for name in names if name in parts), None)


def _range(array: np.ndarray | None) -> Range:
    if array is None or not np.isfinite(array).any():
        return None
    finite = array[np.isfinite(array)]
    finite = np.abs(finite) if np.iscomplexobj(finite) else finite
    return float(np.min(finite)), float(np.max(finite))


def _parts(name: str) -> tuple[str, ...]:
    """Returns the parts of a name, however they are divided: by dots, as torch's, by slashes, or as in `.stats['norm'].mean`."""
    return tuple(re.findall(r"\w+", name))


def _read_file(path: Path) -> dict[tuple[str, ...], np.ndarray]:
    """Returns what may belong to norms of a safetensors file: a weight of torch's with several axes does not."""

    def wanted(name: str, shape: Sequence[int]) -> bool:
        last = _parts(name)[-1:]
        return last in [(part,) for part in _PARTS] and (last != ("weight",) or len(shape) == 1)

    return {_parts(name): array for name, array in read_safetensors(path, wanted=wanted).items()}


def _read_orbax(folder: Path) -> dict[tuple[str, ...], np.ndarray]:
    """Returns what may belong to norms of a folder that Orbax wrote.

    Arrays are read one after the other, and as NumPy arrays: of a broken file, Orbax else leaves the errors of all the other
    arrays behind, which Python reports at some later time.
    """
    place: Any = _folder_of_arrays(folder.resolve())
    found = {}
    with _named(folder), closing(ocp.PyTreeCheckpointHandler()) as handler:
        described: Any = handler.metadata(place)
        leaves, structure = jax.tree.flatten_with_path(described.tree, is_leaf=lambda leaf: hasattr(leaf, "dtype"))
        as_numpy = jax.tree.unflatten(structure, [ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves))
        for i, (path, leaf) in enumerate(leaves):
            name = _parts(jax.tree_util.keystr(path))
            name = name[:-1] if name[-1:] == ("value",) else name  # an nnx variable's
            if name and name[-1] in _PARTS:
                blank: list[Any] = [ocp.PLACEHOLDER] * len(leaves)
                blank[i] = np.zeros((), leaf.dtype)
                item = jax.tree.unflatten(structure, blank)
                restored = handler.restore(place, args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy))
                found[name] = np.asarray(jax.tree.leaves(restored, is_leaf=lambda leaf: leaf is ocp.PLACEHOLDER)[i])
    return found


def _folder_of_arrays(folder: Path) -> Path:
    """Returns the folder that has a checkpoint's arrays: this one, the newest of a run, or a part of it."""
    steps = sorted((int(path.name), path) for path in folder.iterdir() if path.name.isdigit() and path.is_dir())
    step = steps[-1][1] if steps and not (folder / _METADATA).exists() else folder
    places = [path for path in (step, *sorted(step.iterdir())) if (path / _METADATA).exists()]
    if not places:
        raise ValueError(f"{str(folder)!r} is no checkpoint: Orbax wrote no arrays there, and it is no safetensors file")
    return places[0]


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Turns whatever Orbax, TensorStore or JSON raise over a broken file into an error that names the checkpoint."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{str(folder)!r} is a damaged checkpoint: {' '.join(str(error).split())[:300]}") from error
