"""Files that are kept decoded: read once in a process, and shared by all nodes in it."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from fedgraft.client.readers.reader import Reader, ReadRequest
from fedgraft.client.readers.source import Source

# files; the one that was opened first goes first
MOST = 8


class SourceCache:
    """Decoded files by what they were read from, each while its stamp stays the same.

    sources = SourceCache()
    source = sources.open(READERS["npz"], ReadRequest("/data/xrays.npz"))
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._sources: dict[Hashable, Source] = {}
        self._reading = threading.Lock()

    def open(self, reader: Reader, request: ReadRequest) -> Source:
        """Return the records of a file, decoded now or before. Raise `UserError` as its reader."""
        options = (request.reading, reader.options(request))
        key = (reader.name, request.path, options, reader.stamp(request.path))
        # or two threads would decode the same file at once
        with self._reading:
            if key not in self._sources:
                while len(self._sources) >= self._most:
                    oldest = next(iter(self._sources))
                    del self._sources[oldest]
                self._sources[key] = reader.read(request)
            return self._sources[key]

    def clear(self) -> None:
        """Keep nothing."""
        self._sources.clear()
