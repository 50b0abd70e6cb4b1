"""A network of your own as an extension: what a plan calls `own-network`.

    fedgraft pretrain own_network.yaml --with own_network
    fedgraft simulate own_network.yaml --with own_network
    fedgraft server bundle --with own_network

Importing this package registers the network; nothing else happens here.
"""

from __future__ import annotations

import fedgraft
from fedgraft.common.backbones.family import Family
from fedgraft.common.inputs.image import for_images

from .network import BLOCKS, STAGES, SmallNet

OWN_NETWORK = Family(
    names=lambda: ("own-network",),
    build=lambda name, shape: SmallNet(),
    preparation=lambda name, weights, size: for_images(size or 32),
    block_types=BLOCKS,
    order=STAGES,
)
fedgraft.register("family", "own-network", OWN_NETWORK, material="image")
