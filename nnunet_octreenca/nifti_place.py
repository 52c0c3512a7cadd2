"""Where a NIfTI file says that its voxels lie: read with the image, written with its labels."""

from dataclasses import dataclass

from nnunet_octreenca.files import JsonObject

# What labels written onto the image's grid must have in common with it.
PLACE = (
    "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


@dataclass(frozen=True)
class NiftiPlace:
    """Where a NIfTI file says that its voxels lie, unchanged, to be written with its labels.

    Attributes:
        version: of the header, 1 or 2.
        fields: those of the header, by name (`PLACE`).
        pixdim: the header's eight numbers: qfac, then the voxel's size in the file's own unit.
        sheared: its axes are not at right angles, which only NIfTI can say.
    """

    version: int
    fields: JsonObject
    pixdim: tuple[float, ...]
    sheared: bool
