"""The norm layers of checkpoints: of Orbax and safetensors, of linen, nnx, bare pytrees and torch."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.interop import NormSummary, inspect_checkpoint
from jaxnorm.interop._files import write_safetensors
from jaxnorm.training import init_train_state, save_checkpoint

MEAN, VAR = np.array([0, 2, -1, 0, 5], np.float32), np.array([1, 0, np.nan, 1, 9], np.float32)
SCALE, BIAS = np.array([1, 1, 2, 0.5, 1], np.float32), np.array([0, 0, 0, 0, np.inf], np.float32)
WANTED = NormSummary("block/bn", (5,), (-1, 5), (0, 9), (0.5, 2), dead=1, not_finite=2, never_updated=2, batches=None)


def save(folder: Path, tree: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "saved", tree)
    return folder / "saved"


def linen_variables() -> dict[str, Any]:
    return {
        "params": {"block": {"bn": {"scale": SCALE, "bias": BIAS}, "conv": {"kernel": np.ones((1, 2, 5)), "bias": np.ones(5)}}},
        "batch_stats": {"block": {"bn": {"mean": MEAN, "var": VAR}}},
    }


def write_torch(folder: Path) -> Path:
    parts = {"weight": SCALE, "bias": BIAS, "running_mean": MEAN, "running_var": VAR, "num_batches_tracked": np.array(7)}
    others = {"block.conv.weight": np.ones((5, 2, 3)), "block.conv.bias": np.ones(5), "fc.weight": np.ones((2, 5))}
    write_safetensors(folder / "torch.safetensors", {**{f"block.bn.{k}": v for k, v in parts.items()}, **others})
    return folder / "torch.safetensors"


def write_flax(folder: Path) -> Path:
    leaves, _ = jax.tree.flatten_with_path(linen_variables())
    write_safetensors(folder / "flax.safetensors", {"/".join(part.key for part in path): leaf for path, leaf in leaves})
    return folder / "flax.safetensors"


def save_nnx(folder: Path) -> Path:
    class Block(nnx.Module):
        def __init__(self):
            self.bn = jaxnorm.nnx.BatchNorm(5, rngs=nnx.Rngs(0))

    class Net(nnx.Module):
        def __init__(self):
            self.block = Block()

    net = Net()
    for name, value in {"scale": SCALE, "bias": BIAS, "mean": MEAN, "var": VAR}.items():
        getattr(net.block.bn, name)[...] = jnp.asarray(value)
    return save(folder, nnx.state(net))


def save_run(folder: Path) -> Path:
    """With an optimizer, whose averages have the names of scale and bias; the newest step counts."""
    variables, optimizer = linen_variables(), optax.adam(1e-3)
    for step, mean in ((9, 100 * MEAN), (10, MEAN)):
        stats = {"block": {"bn": {"mean": mean, "var": VAR}}}
        state = init_train_state(jax.random.key(0), variables["params"], stats, optimizer)
        save_checkpoint(folder / "run", state._replace(step=jnp.asarray(step)))
    return folder / "run"


WRITERS = {
    "linen": lambda folder: save(folder, linen_variables()),
    "nnx": save_nnx,
    "run": save_run,
    "torch": write_torch,
    "flax file": write_flax,
}


@pytest.mark.jax_defaults
@pytest.mark.parametrize("kind", WRITERS)
def test_a_layer_is_found_and_its_ill_channels_are_counted(kind: str, tmp_path: Path) -> None:
    if kind in ("torch", "flax file"):
        pytest.importorskip("safetensors")
    assert inspect_checkpoint(WRITERS[kind](tmp_path)) == (WANTED._replace(batches=7 if kind == "torch" else None),)


def test_norms_without_statistics_and_without_scale(tmp_path: Path) -> None:
    net = nn.Sequential([
        nn.Dense(3), jaxnorm.linen.LayerNorm(), jaxnorm.linen.BatchNorm(True, use_scale=False, use_bias=False), nn.Embed(4, 2)
    ])  # fmt: skip
    x = jnp.ones((2, 3))
    variables = nn.Sequential(net.layers[:3]).init(jax.random.key(0), x)
    first, second = inspect_checkpoint(save(tmp_path, variables))
    if first.path == "layers_1":
        first, second = second, first
    assert first == NormSummary("layers_2", (3,), (0, 0), (1, 1), None, 0, 0, never_updated=3, batches=None)
    assert second == NormSummary("layers_1", (3,), None, None, (1, 1), 0, 0, 0, None)


def test_of_a_file_only_what_may_be_of_norms_is_read_and_complex_means_are_shown_by_their_modulus(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {
        "bn.mean": np.array([3 + 4j, 0], np.complex64),
        "bn.var": np.ones(2, np.float32),
        "fc.weight": np.ones((2, 8), np.int8),
    }
    old, new = b'"dtype":"I8"', b'"dtype":"F8_E4M3"'  # of which NumPy knows nothing
    content = safetensors.save(arrays)
    assert old in content
    length = int.from_bytes(content[:8], "little") + len(new) - len(old)
    (tmp_path / "file.safetensors").write_bytes(length.to_bytes(8, "little") + content[8:].replace(old, new))
    (found,) = inspect_checkpoint(tmp_path / "file.safetensors")
    assert found == NormSummary("bn", (2,), (0, 5), (1, 1), None, 0, 0, never_updated=1, batches=None)


def test_what_has_no_norms_or_is_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have norm layers, and has none among 1 groups"):
        inspect_checkpoint(save(tmp_path / "dense", {"params": {"fc": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}}}))
    # Of several arrays Orbax leaves errors behind, which Python reports at some later time.
    saved = save(tmp_path, {"params": {"ln": {"scale": np.ones(2)}}})
    assert inspect_checkpoint(saved)[0].path == "ln"
    for file in (saved / "d").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"saved' is a damaged checkpoint: OUT_OF_RANGE.*params\.ln\.scale"):
        inspect_checkpoint(saved)
    (saved / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match=r"saved' is a damaged checkpoint: Expecting property name"):
        inspect_checkpoint(saved)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        inspect_checkpoint(tmp_path / "nowhere")
