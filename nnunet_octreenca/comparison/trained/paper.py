"""What the paper reports of its data sets (Lemke et al. 2025, tables of text and supplement)."""

from collections.abc import Mapping

from nnunet_octreenca.comparison.tables import MISSING, Cell, Table
from nnunet_octreenca.files import JsonMapping

_PARAMETERS = {"Med-NCA": 7488, "M3D-NCA": 12480}

_DICE: Mapping[str, Mapping[str, float]] = {
    "Task05_Prostate": {
        "OctreeNCA": 82.5, "M3D-NCA": 80.5, "U-Net": 84.1, "ResNet18": 85.6, "DenseNet": 84.8,
        "nnU-Net": 88.2,
    },
    "PESO": {"OctreeNCA": 86.3, "Med-NCA": 84.4, "U-Net": 82.8, "SegFormer": 86.3},
    "CholecSeg8k": {
        "OctreeNCA": 64.0, "M3D-NCA": 64.0, "U-Net": 53.1, "ResNet18": 61.9, "DenseNet": 63.3,
        "SAM2 (prompted)": 60.1,
    },
}  # fmt: skip
_OURS = {  # parameters, GiB of training
    "Task05_Prostate": (17600, 2.18),
    "PESO": (15520, 2.25),
    "CholecSeg8k": (16960, 2.41),
}

LARGEST_BYTES = 24 << 30
"""Memory of the GPU of `LARGEST`."""

LARGEST: Mapping[int, Mapping[str, tuple[float, float | None]]] = {
    2: {
        "U-Net": (8.3, 2745), "Med-NCA": (28.7, None), "OctreeNCA, PyTorch": (28.7, 269),
        "OctreeNCA, their CUDA kernel": (184.9, 139),
    },
    3: {  # 240 x 432 pixels, 25 frames a second
        "U-Net": (9.8, None), "M3D-NCA": (29.8, None), "OctreeNCA, PyTorch": (29.8, None),
        "OctreeNCA, their CUDA kernel": (197.5, None),
    },
}  # fmt: skip
"""The largest image of one pass in million voxels, of slides (2) and video (3), and the bytes a
voxel where they are stated (Table 2, Figure 6)."""


def paper_table(dataset_json: JsonMapping) -> Table | None:
    """The paper's figures of a data set that one of our converters made; None of any other.

    >>> paper_table({"description": "PESO, prostate epithelium"}).rows[0][1].text
    '86.3'
    >>> paper_table({"description": "my prostates"}) is None
    True
    """
    description = str(dataset_json.get("description", ""))
    found = next((name for name in _DICE if name in description), None)
    if found is None:
        return None
    rows = []
    for method, dice in _DICE[found].items():
        parameters: int | None = _PARAMETERS.get(method)
        memory = None
        if method == "OctreeNCA":
            parameters, memory = _OURS[found]
        rows.append(
            (
                Cell(method),
                Cell(f"{dice:.1f}", dice),
                Cell(MISSING) if parameters is None else Cell(f"{parameters:,}", parameters),
                Cell(MISSING) if memory is None else Cell(f"{memory:.2f} GiB", memory),
            )
        )
    return Table(
        "In the paper",
        f"Lemke et al. 2025 on {found}, with their own split, training and GPU: not measured here, "
        "and not comparable case by case.",
        ("Method", "Dice (%)", "Parameters", "Memory of training"),
        tuple(rows),
        1,
    )
