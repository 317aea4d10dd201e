"""Folders that look as if packages were installed in them."""

from pathlib import Path


def install(folder: Path, version: str, *names: str) -> None:
    """Puts into a folder what says that these packages are there, and nothing of them."""
    for name in names:
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
