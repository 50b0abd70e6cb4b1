"""The formats that node.yaml's `data.format` may name."""

PREFIX = "sklearn:"
FORMATS = ("npz", "csv", "parquet", "image-folder", "dicom", "manifest", "sklearn")
