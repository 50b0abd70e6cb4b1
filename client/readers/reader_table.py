"""The formats of data: what node.yaml's `data.format` may name, and the reader of each.

To add one: a file here with a `Reader` in it (`client/readers/reader.py`), and a line below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedgraft.common.registry import Registry

if TYPE_CHECKING:
    from fedgraft.client.readers.reader import Reader

# A path that begins so is the name of a data set that scikit-learn ships.
PREFIX = "sklearn:"

READERS: Registry[Reader] = Registry(
    "data.format",
    "format",
    {
        "npz": "fedgraft.client.readers.archive:NPZ",
        "csv": "fedgraft.client.readers.table_file:CSV",
        "parquet": "fedgraft.client.readers.table_file:PARQUET",
        "texts": "fedgraft.client.readers.text_table:TEXTS",
        "image-folder": "fedgraft.client.readers.folder:IMAGE_FOLDER",
        "dicom": "fedgraft.client.readers.folder:DICOM_FOLDER",
        "manifest": "fedgraft.client.readers.manifest:MANIFEST",
        "image-table": "fedgraft.client.readers.image_table:IMAGE_TABLE",
        "volume-folder": "fedgraft.client.readers.volume_folder:VOLUME_FOLDER",
        "volume-manifest": "fedgraft.client.readers.volume_folder:VOLUME_MANIFEST",
        "signal-folder": "fedgraft.client.readers.signal_folder:SIGNAL_FOLDER",
        "signal-table": "fedgraft.client.readers.signal_table:SIGNAL_TABLE",
        "signal-npz": "fedgraft.client.readers.signal_archive:SIGNAL_ARCHIVE",
        "mask-folder": "fedgraft.client.readers.mask_folder:MASK_FOLDER",
        "volume-mask-folder": "fedgraft.client.readers.mask_folder:VOLUME_MASK_FOLDER",
        "coco": "fedgraft.client.readers.coco:COCO",
        "sklearn": "fedgraft.client.readers.bundled:SKLEARN",
    },
)
