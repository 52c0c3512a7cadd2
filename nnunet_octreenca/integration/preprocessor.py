"""nnU-Net's DefaultPreprocessor with less memory and the same result.

It reads images of any size (image_reader), works in the array that it has read instead of in
copies of it, leaves out the mask of the nonzero region where nobody looks at it, and samples
foreground locations by rank (foreground_sampling). Prediction with our networks uses it in
nnU-Net's own workers (configuration_manager); `nnUNetv2_preprocess` does for plans that name it:

    nnUNetv2_plan_and_preprocess -d 5 -c 2d -preprocessor_name OctreeNCAPreprocessor
"""

from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnunet_octreenca.integration.foreground_sampling import sample_foreground_locations
from nnunet_octreenca.integration.image_reader import read_natural_images, unlimited_pillow

# Their result does not depend on the order in which pixels lie in memory. Means and deviations
# do, by a rounding: for them images are read as nnU-Net reads them.
_ORDERLESS = {
    "CTNormalization",
    "NoNormalization",
    "RGBTo01Normalization",
    "RescaleTo01Normalization",
}
_OUTSIDE = -1  # nnU-Net's label of what lies outside the nonzero region

Box = list[list[int]]


class OctreeNCAPreprocessor(DefaultPreprocessor):
    """What DefaultPreprocessor does with files, in less memory.

    The data, properties and, of cases with a segmentation, the segmentation are the same bit for
    bit. A case without one gets zeros for a segmentation unless a normalization asks for the
    nonzero region: nnU-Net's prediction does not look at it.
    """

    _sample_foreground_locations = staticmethod(sample_foreground_locations)

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[NDArray, NDArray, dict[str, Any]]:
        """Read and preprocess one case.

        Returns:
            data (channels, z, y, x) float32, segmentation (1, z, y, x), properties.

        Raises:
            InputError: an image is damaged, or promises what its file or the machine cannot hold.
        """
        if isinstance(dataset_json, str):
            dataset_json = load_json(dataset_json)
        reader = plans_manager.image_reader_writer_class()
        schemes = set(configuration_manager.normalization_schemes)
        with unlimited_pillow():
            if type(reader) is NaturalImage2DIO and schemes <= _ORDERLESS:
                data, properties = read_natural_images(image_files)
            else:
                data, properties = reader.read_images(image_files)
            seg = None if seg_file is None else reader.read_seg(seg_file)[0]
        if self.verbose:
            print(seg_file)
        return self._run_in_place(
            data, seg, properties, plans_manager, configuration_manager, dataset_json
        )

    def _run_in_place(
        self,
        data: NDArray,
        seg: NDArray | None,
        properties: dict[str, Any],
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: Any,
    ) -> tuple[NDArray, NDArray, dict[str, Any]]:
        """`run_case_npy` on arrays that are ours to change."""
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
        properties["bbox_used_for_cropping"] = box
        properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]

        target = configuration_manager.spacing
        if len(target) < len(spacing):  # planes keep their distance in 2d
            target = [spacing[0], *target]
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
            return data, _nothing(data.shape[1:]), properties
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


def _nothing(shape: tuple[int, ...]) -> NDArray[np.int8]:
    """A segmentation of zeros that takes no memory."""
    return np.broadcast_to(np.int8(0), (1, *shape))


def _cropped(data: NDArray, seg: NDArray | None, masked: bool) -> tuple[NDArray, NDArray, Box]:
    """nnU-Net's `crop_to_nonzero`; the mask is made only where it is used."""
    if seg is None and not masked:
        # Filling the mask's holes does not move its box.
        box = _nonzero_box(data)
        data = data[_inside(box)]
        return data, _nothing(data.shape[1:]), box
    # Along an axis of one or two cells every cell touches the border: there are no holes.
    mask = _nonzero(data) if min(data.shape[1:]) <= 2 else create_nonzero_mask(data)
    box = _box([np.any(mask, axis=axes) for axes in ((1, 2), (0, 2), (0, 1))])
    inside = _inside(box)
    data, mask = data[inside], mask[inside[1:]][None]
    if seg is None:
        return data, np.where(mask, np.int8(0), np.int8(_OUTSIDE)), box
    seg = seg[inside]
    np.logical_not(mask, out=mask)
    mask &= seg == 0
    seg[mask] = _OUTSIDE
    return data, seg, box


def _nonzero(data: NDArray) -> NDArray[np.bool_]:
    """Where any channel is not zero."""
    mask = data[0] != 0
    for channel in data[1:]:
        mask |= channel != 0
    return mask


def _nonzero_box(data: NDArray) -> Box:
    """First and end of the nonzero region along z, y, x; the whole where all is zero."""
    planes = np.zeros(data.shape[1], dtype=bool)
    rows, columns = (np.zeros(n, dtype=bool) for n in data.shape[2:])
    for z in range(data.shape[1]):
        mask = _nonzero(data[:, z])
        rows |= mask.any(axis=1)
        columns |= mask.any(axis=0)
        planes[z] = mask.any()
    return _box([planes, rows, columns])


def _box(occupied: list[Any]) -> Box:
    """From what is occupied along z, y and x."""
    if not occupied[0].any():
        return [[0, len(axis)] for axis in occupied]
    return [[int(axis.argmax()), len(axis) - int(axis[::-1].argmax())] for axis in occupied]


def _inside(box: Box) -> tuple[slice, ...]:
    return (slice(None), *(slice(*ends) for ends in box))
