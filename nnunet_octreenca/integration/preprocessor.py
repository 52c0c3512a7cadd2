"""nnU-Net's DefaultPreprocessor with less memory and the same result.

It reads images of any size (image_reader), works in the array that it has read instead of in
copies of it, leaves out the mask of the nonzero region where it is not used, and samples
foreground locations by rank (foreground_sampling). Prediction with our networks uses it in
nnU-Net's own workers (configuration_manager); `nnUNetv2_preprocess` does for plans that name it:

    nnUNetv2_plan_and_preprocess -d 5 -c 2d -preprocessor_name OctreeNCAPreprocessor

Nonzero box, mask and spacings are those of nnunet_octreenca.preprocessing. Normalization and
resampling are nnU-Net's own, since the result has to be the same bit for bit: its mean and
deviation are float32 sums over the whole array, which bands cannot repeat, its splines differ from
products with matrices by a rounding, and plans may name any class or function that nnU-Net finds.
"""

from pathlib import Path

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.preprocessing.preprocessors import default_preprocessor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnunet_octreenca.files import JsonObject
from nnunet_octreenca.images.finite import require_finite
from nnunet_octreenca.images.nifti import require_sound_nifti
from nnunet_octreenca.integration.case_properties import CaseProperties
from nnunet_octreenca.integration.foreground_sampling import sample_foreground_locations
from nnunet_octreenca.integration.image_reader import (
    labels_as_shown,
    read_natural_images,
    stored_otherwise_than_shown,
    unlimited_pillow,
)
from nnunet_octreenca.integration.worker_pools import watched_pools
from nnunet_octreenca.preprocessing.crop import (
    Box,
    box_slices,
    filled_holes,
    nonzero_box,
    nonzero_mask,
    whole_box,
)
from nnunet_octreenca.preprocessing.geometry import target_spacing

# Their result does not depend on the order in which pixels lie in memory. Means and deviations
# do, by a rounding: for them images are read as nnU-Net reads them.
_ORDERLESS = {
    "CTNormalization",
    "NoNormalization",
    "RGBTo01Normalization",
    "RescaleTo01Normalization",
}
_OUTSIDE = -1  # nnU-Net's label of what lies outside the nonzero region


class OctreeNCAPreprocessor(DefaultPreprocessor):
    """DefaultPreprocessor for files, with a smaller memory peak.

    The data, properties and, of cases with a segmentation, the segmentation are the same bit for
    bit. A case without one gets zeros for a segmentation unless a normalization asks for the
    nonzero region: nnU-Net's prediction does not look at it.
    """

    _sample_foreground_locations = staticmethod(sample_foreground_locations)

    def run(self, *arguments: object, **options: object) -> None:
        """nnU-Net's, with processes that are not waited for in vain."""
        with watched_pools(preprocessing=default_preprocessor):
            super().run(*arguments, **options)

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: JsonObject | str,
    ) -> tuple[NDArray, NDArray, CaseProperties]:
        """Read and preprocess one case.

        Returns:
            data (channels, z, y, x) float32, segmentation (1, z, y, x), properties.

        Raises:
            InputError: an image is damaged, has voxels that are NaN or infinite, or promises what
                its file or the machine cannot hold.
        """
        for path in map(Path, [*image_files, *([seg_file] if seg_file else [])]):
            if path.name.lower().endswith((".nii", ".nii.gz")):
                require_sound_nifti(path)  # SimpleITK would read NaN as 0
        described = load_json(dataset_json) if isinstance(dataset_json, str) else dataset_json
        reader = plans_manager.image_reader_writer_class()
        schemes = set(configuration_manager.normalization_schemes)
        with unlimited_pillow():
            natural = type(reader) is NaturalImage2DIO
            ours = natural and (
                schemes <= _ORDERLESS or any(map(stored_otherwise_than_shown, image_files))
            )
            data, properties = (read_natural_images if ours else reader.read_images)(image_files)
            _require_finite(image_files, data)
            seg = None if seg_file is None else reader.read_seg(seg_file)[0]
            if natural and seg is not None and seg_file is not None:
                seg = labels_as_shown(seg, seg_file)
        if self.verbose:
            print(seg_file)
        return self._run_in_place(
            data, seg, properties, plans_manager, configuration_manager, described
        )

    def _run_in_place(
        self,
        data: NDArray,
        seg: NDArray | None,
        properties: CaseProperties,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: JsonObject,
    ) -> tuple[NDArray, NDArray, CaseProperties]:
        """`run_case_npy` on arrays that may be modified in place."""
        data = data.astype(np.float32, copy=False)
        if seg is not None and data.shape[1:] != seg.shape[1:]:
            # Says so in nnU-Net's words.
            return self.run_case_npy(
                data, seg, properties, plans_manager, configuration_manager, dataset_json
            )
        labelled = seg is not None
        forward = plans_manager.transpose_forward
        axes = [0, *(axis + 1 for axis in forward)]
        data = data.transpose(axes)
        if seg is not None:
            seg = seg.transpose(axes)
        spacing = [properties["spacing"][axis] for axis in forward]
        properties["shape_before_cropping"] = data.shape[1:]
        masked = any(configuration_manager.use_mask_for_norm)
        data, seg, box = _cropped(data, seg, masked)
        properties["bbox_used_for_cropping"] = [list(ends) for ends in box]
        properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]

        target = list(target_spacing(spacing, configuration_manager.spacing))
        shape = compute_new_shape(data.shape[1:], spacing, target)
        data = self._normalize(
            data,
            seg,
            configuration_manager,
            plans_manager.foreground_intensity_properties_per_channel,
        )
        before = data.shape[1:]
        data = configuration_manager.resampling_fn_data(data, shape, spacing, target)
        if self.verbose:
            print(
                f"old shape: {before}, new_shape: {shape}, old_spacing: {spacing}, new_spacing: "
                f"{target}, fn_data: {configuration_manager.resampling_fn_data}"
            )
        if not labelled and not masked:
            return data, _zeros(data.shape[1:]), properties
        seg = configuration_manager.resampling_fn_seg(seg, shape, spacing, target)
        if labelled:
            manager = plans_manager.get_label_manager(dataset_json)
            sampled = (
                manager.foreground_regions if manager.has_regions else manager.foreground_labels
            )
            if manager.has_ignore_label:  # all that is annotated, the background too
                sampled.append([-1, *manager.all_labels])
            properties["class_locations"] = self._sample_foreground_locations(
                seg, sampled, verbose=self.verbose
            )
            seg = self.modify_seg_fn(seg, plans_manager, dataset_json, configuration_manager)
        return data, seg.astype(np.int16 if np.max(seg) > 127 else np.int8), properties


def _require_finite(files: list[str], data: NDArray) -> None:
    """Each file is a channel, or one file holds all."""
    if len(files) != len(data):
        require_finite(", ".join(files), data)
        return
    for file, channel in zip(files, data, strict=True):
        require_finite(file, channel[None])


def _zeros(shape: tuple[int, ...]) -> NDArray[np.int8]:
    """An all-zero segmentation that occupies no memory."""
    return np.broadcast_to(np.int8(0), (1, *shape))


def _cropped(data: NDArray, seg: NDArray | None, masked: bool) -> tuple[NDArray, NDArray, Box]:
    """nnU-Net's `crop_to_nonzero`; the mask is computed only where it is used.

    Beyond the box all is zero, so that its mask has the holes that the whole image's has.
    """
    box = nonzero_box(data) or whole_box(data.shape[1:])
    inside = (slice(None), *box_slices(box))
    data = data[inside]
    if seg is None and not masked:
        return data, _zeros(data.shape[1:]), box
    mask = filled_holes(nonzero_mask(data))[None]
    if seg is None:
        return data, np.where(mask, np.int8(0), np.int8(_OUTSIDE)), box
    seg = seg[inside]
    np.logical_not(mask, out=mask)
    mask &= seg == 0
    seg[mask] = _OUTSIDE
    return data, seg, box
