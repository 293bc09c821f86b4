"""The masks of some keys, as they were when the major version began: no change within it may make others.

A mask is stored as the first half of the SHA-256 of its bits, eight to a byte, in the order of rows.
"""

import hashlib

import numpy as np
import pytest

from torch_dropblock import drop_block_mask, use_backend
from torch_dropblock.backends import native
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.seeds import draw_seeds, table_of

KEYS = [0, 1, -1, 2**63 - 1, 20181030]
# shape, block_size, keep_prob, share_channels
CASES = {
    "2d": ((4, 8, 28, 28), 7, 0.9, False),
    "2d of several streams a plane": ((2, 3, 90, 70), (3, 5), 0.7, False),
    "small maps": ((16, 64, 7, 7), 3, 0.9, False),
    "shared channels": ((8, 5, 14, 14), (5, 3), 0.5, True),
    "1d": ((4, 6, 500), 9, 0.9, False),
    "3d": ((2, 3, 8, 12, 12), (2, 3, 3), 0.8, False),
}
DIGESTS = {
    "2d": [
        "41a8f0828aa48d2caa16868e444cde22",
        "e215c7b3011c670d60923dc781f647cd",
        "0edc4bb5400061e28a2122f731540f10",
        "182d794cfc2eb20181392e1b0c0cd221",
        "44e228ee620fb05adcc12d3b233999ff",
    ],
    "2d of several streams a plane": [
        "cac5554598a63336a2becb7a53d36b29",
        "36a4b93dd775f71f818395e00b649cd0",
        "4b1d7993ced74fa63e2a3b3e8fe014fb",
        "ae311c05dc629f6be7c4c73d53f9646f",
        "0940d318852538644d4978ae08772d33",
    ],
    "small maps": [
        "77075606053f0b5139a15623870bc647",
        "107c6b802cbdfe129d5dc0405fb35cbe",
        "12b87ecedea26af4f893e5d7d3118591",
        "a9bed0ccfc403a465f6a09e919ab881a",
        "8d931b54b0a3271df3a2385f9099d204",
    ],
    "shared channels": [
        "d838d967a432f1c699884d2c7cc13b4d",
        "e2765b8834cf51b36ce1b8c9ec5e9195",
        "6751eb50182aeb7aa71d1d66ca562b61",
        "0ced3c8753a97cbd64ea3fe8606a4fbf",
        "076a1e185e781032dec9051a74458578",
    ],
    "1d": [
        "61f0da1266d9ee28412e1abf058bdf7c",
        "d0223f695fea65ccfd9786cf5967c105",
        "f98f84e0ee6fe8f9912080327f18304b",
        "5fc663ce67cf68fb88d619523459f651",
        "63896960c5fd3022671d36b9cfdfa175",
    ],
    "3d": [
        "3791e75075d4b2e340fda40f94d53093",
        "745f794dfcf7a09b5b00b759272020d2",
        "cc847a259621087c2aa1a6170bfaea5e",
        "2e98bff95efb709e35cf493fad5b0820",
        "c337084a7592316bd2fbe1b7e37e2bf1",
    ],
}
# the first seeds of 32 planes of 28 by 28 units, of which blocks of 7 drop a tenth
SEEDS = {
    0: [495, 898, 1271, 1311, 1926, 2210],
    1: [78, 256, 545, 608, 1064, 1135],
    -1: [287, 550, 556, 636, 786, 897],
    9223372036854775807: [171, 347, 662, 690, 806, 1150],
    20181030: [42, 1039, 1120, 1181, 1324, 1786],
}


@pytest.mark.parametrize("name", ["sparse", "reference", *(["native"] if native.LIBRARY else [])])
@pytest.mark.parametrize("case", CASES)
def test_masks(case, name):
    shape, block_size, keep_prob, share_channels = CASES[case]
    options = {"dims": len(shape) - 2, "keep_prob": keep_prob, "share_channels": share_channels}
    with use_backend(name):
        masks = [drop_block_mask(shape, block_size, **options, key=key) for key in KEYS]
    digests = [hashlib.sha256(np.packbits(mask.numpy()).tobytes()).hexdigest()[:32] for mask in masks]
    assert digests == DIGESTS[case]


@pytest.mark.parametrize("key", SEEDS)
def test_seeds(key):
    blocks = Blocks((32,), (28, 28), (7, 7))
    table = table_of(blocks.size, blocks.block, blocks.streams.length, 0.9, "exact")
    assert draw_seeds(key, blocks, table).unique()[:6].tolist() == SEEDS[key]
