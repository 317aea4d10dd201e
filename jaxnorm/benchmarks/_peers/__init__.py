"""What other libraries' layers are beside ours: a module for each library.

Its `LAYERS` holds, by the name of the layer and that of the contender, the builder of a layer. Libraries that jaxnorm does not
depend on are imported when a layer is built, and not before.
"""

import functools
import importlib
import importlib.util
from collections.abc import Mapping
from typing import NamedTuple

from jaxnorm.benchmarks._layer import Builder


class Peer(NamedTuple):
    """A library.

    Attributes:
      module: its module in this folder.
      package: the package that must be there.
      distribution: the name under which the package is installed.
    """

    module: str
    package: str
    distribution: str


PEERS = (
    Peer("jax_random", "jax", "jax"),
    Peer("linen", "flax", "flax"),
    Peer("nnx", "flax", "flax"),
    Peer("haiku", "haiku", "dm-haiku"),
    Peer("equinox", "equinox", "equinox"),
    Peer("keras", "keras", "keras"),
    Peer("torch", "torch", "torch"),
)


def missing_peers() -> tuple[Peer, ...]:
    """Returns the libraries that are not installed."""
    return tuple(peer for peer in PEERS if not _installed(peer.package))


def peer_layers(name: str) -> dict[str, Builder]:
    """Returns the builders of all installed libraries for the layer of this name, by the names of the contenders."""
    return {contender: build for layers in _all_layers() for contender, build in layers.get(name, {}).items()}


@functools.cache
def _all_layers() -> tuple[Mapping[str, Mapping[str, Builder]], ...]:
    modules = (importlib.import_module(f"{__name__}.{peer.module}") for peer in PEERS if _installed(peer.package))
    return tuple(module.LAYERS for module in modules)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
