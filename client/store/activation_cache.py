"""The folder in which a node keeps activations, and how large it may grow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedgraft.client.node.node_file import Node

SUFFIX = ".activations"
# of st_blocks, whatever the file system's own blocks are
_BLOCK = 512


@dataclass(frozen=True)
class ActivationCache:
    """Where a node keeps activations, and how many bytes of them at most.

        cache = ActivationCache(node.activations_path, node.cache.max_bytes)
        cache.size()
        cache.purge()

    `client/store/cut_models.py` makes the files.
    """

    folder: Path
    max_bytes: int

    def size(self) -> int:
        """Return the bytes that the kept files take on disk."""
        return sum(path.stat().st_blocks * _BLOCK for path in self.files())

    def files(self) -> list[Path]:
        """Return the kept files, the one that was opened longest ago first."""
        if not self.folder.is_dir():
            return []
        files = self.folder.glob(f"*{SUFFIX}*")
        return sorted(files, key=lambda path: path.stat().st_mtime)

    def purge(self) -> int:
        """Delete everything that is kept, and return the number of files.

        A node at work computes anew.
        """
        files = self.files()
        for path in files:
            path.unlink(missing_ok=True)
        return len(files)

    def make_room(self, size: int) -> None:
        """Delete what was opened longest ago until `size` bytes more fit."""
        files = self.files()
        sizes = [path.stat().st_size for path in files]
        while files and sum(sizes) + size > self.max_bytes:
            files.pop(0).unlink(missing_ok=True)
            sizes.pop(0)


def open_cache(node: Node) -> ActivationCache | None:
    """Return where a node keeps activations; None: nowhere."""
    if not node.cache.enabled:
        return None
    return ActivationCache(node.activations_path, node.cache.max_bytes)
