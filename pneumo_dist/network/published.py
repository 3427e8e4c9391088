"""Names of weights in the checkpoints that the first place published (Aimoldin Anuar, 2019).

Their networks have the layers of first_place.py under other names.
"""

import re
from collections.abc import Mapping, Sequence

# Patterns of this project's names and the published names, by architecture. The first match counts.
_Names = Sequence[tuple[str, str]]

_ALBUNET: _Names = (
    # `encoder` is torchvision's ResNet in both.
    (r"encoder\.(.*)", r"encoder.\1"),
    *(
        (rf"decoder\.blocks\.{number}\.{layer}\.(.*)", rf"{block}.block.{position}.conv.\1")
        for number, block in enumerate(("center", "dec5", "dec4", "dec3", "dec2", "dec1"))
        for layer, position in ((0, 1), (2, 2))
    ),
    (r"decoder\.last\.0\.(.*)", r"dec0.conv.\1"),
    (r"segmentation_head\.(.*)", r"final.\1"),
)
_CONCAT: _Names = (
    (r"encoder\.layer1\.(.*)", r"encoder_stages.1.1.\1"),
    (r"encoder\.layer([234])\.(.*)", r"encoder_stages.\1.\2"),
    # Decoder blocks are numbered from the input there, and from the deepest features here.
    *((rf"decoder\.up\.{number}\.0\.(.*)", rf"decoder_stages.{3 - number}.layer.1.\1") for number in range(4)),
    (r"decoder\.up\.4\.0\.(.*)", r"last_upsample.layer.1.\1"),
    (r"decoder\.join\.(\d)\.0\.(.*)", r"bottlenecks.\1.seq.0.\2"),
    (r"decoder\.join\.(\d)\.2\.channel\.1\.(.*)", r"bottlenecks.\1.seq.2.fc1.\2"),
    (r"decoder\.join\.(\d)\.2\.channel\.3\.(.*)", r"bottlenecks.\1.seq.2.fc2.\2"),
    (r"decoder\.join\.(\d)\.2\.spatial\.0\.(.*)", r"bottlenecks.\1.seq.2.spatial_se.0.\2"),
    (r"segmentation_head\.(.*)", r"final.0.\1"),
)
_NAMES: Mapping[str, _Names] = {
    "albunet": _ALBUNET,
    # The stem of a SENet is a named sequence, that of a ResNet is not.
    "scse_unet": ((r"encoder\.layer0\.(.*)", r"encoder_stages.0.\1"), *_CONCAT),
    "resnet_unet": (
        (r"encoder\.conv1\.(.*)", r"encoder_stages.0.0.\1"),
        (r"encoder\.bn1\.(.*)", r"encoder_stages.0.1.\1"),
        *_CONCAT,
    ),
}


def published_names(arch: str, names: Sequence[str]) -> dict[str, str]:
    """Return the published name of each of a network's weights; empty for an architecture without published files."""
    patterns = _NAMES.get(arch, ())
    matches = ((name, re.fullmatch(ours, name), theirs) for name in names for ours, theirs in patterns)
    published: dict[str, str] = {}
    for name, match, theirs in matches:
        if match is not None:
            published.setdefault(name, match.expand(theirs))
    return published
