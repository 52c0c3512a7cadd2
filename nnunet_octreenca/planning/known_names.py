"""The classes and functions that plans may name: nnU-Net's, its networks' parts, and ours.

nnU-Net imports what plans name. A name that is not here could be any code that happens to be
installed; it is refused before anything is imported.
"""

import re

from nnunet_octreenca.planning.configuration import NETWORK_CLASS

CUSTOM = (
    "if you know and trust the code that it names, install it into nnU-Net and predict with "
    "nnUNetv2_predict"
)
READERS = frozenset(
    {
        "NaturalImage2DIO",
        "NibabelIO",
        "NibabelIOWithReorient",
        "OctreeNCANaturalImage2DIO",
        "SimpleITKIO",
        "SimpleITKIOWithReorient",
        "Tiff3DIO",
    }
)
PREPROCESSORS = frozenset({"DefaultPreprocessor", "OctreeNCAPreprocessor"})
LABEL_MANAGERS = frozenset({"LabelManager"})
NORMALIZATIONS = frozenset(
    {
        "CTNormalization",
        "NoNormalization",
        "RGBTo01Normalization",
        "RescaleTo01Normalization",
        "ZScoreNormalization",
    }
)
RESAMPLINGS = frozenset(
    {
        "no_resampling_data_or_seg_to_shape",
        "no_resampling_hack",
        "resample_data_or_seg_to_shape",
        "resample_torch_fornnunet",
        "resample_torch_simple",
    }
)
# A class directly in a module: a longer dotted name could pass through what a module imports.
_NETWORK = re.compile(r"dynamic_network_architectures\.architectures\.\w+\.[A-Z]\w*", re.ASCII)
_PART = re.compile(
    r"torch\.nn\.(modules\.(activation|batchnorm|conv|dropout|instancenorm|normalization)\.)?"
    r"[A-Z][A-Za-z0-9]*|dynamic_network_architectures\.building_blocks\.\w+\.[A-Z]\w*",
    re.ASCII,
)


def known_network(name: object) -> bool:
    """Whether plans may name it as their network.

    >>> known_network("nnunet_octreenca.network.OctreeNCA"), known_network("os.system")
    (True, False)
    """
    return isinstance(name, str) and (name == NETWORK_CLASS or bool(_NETWORK.fullmatch(name)))


def known_part(name: object) -> bool:
    """Whether plans may have it imported as a part of a stock network.

    >>> known_part("torch.nn.modules.conv.Conv3d"), known_part("torch.nn.modules.module.torch.os")
    (True, False)
    """
    return isinstance(name, str) and bool(_PART.fullmatch(name))
