"""Federated transfer learning: hospitals graft adapters onto a pre-trained backbone.

The rooms (`client`, `common`, `server`, `simulations`) are folders of the repository and links in
this package; in a wheel they are its subpackages. Flower's packer does not follow links: in an app
bundle the rooms lie beside it.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
if not (_HERE / "common").exists():
    __path__.append(str(_HERE.parent))
