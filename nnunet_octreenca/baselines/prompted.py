"""SAM and SAM2 with points of the truth as prompts, as in the paper's tables.

SAM (Kirillov et al. 2023) gets 20 random foreground points a class and patch of a picture. SAM2
(Ravi et al. 2024) gets one point a class of a clip, in the first frame that has the class, and
follows it from there. Neither is trained; their weights are transformers checkpoints that somebody
has downloaded.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_octreenca.baselines.libraries import library
from nnunet_octreenca.errors import InputError

POINTS = 20
"""Of each class in each patch of a picture."""

TYPES = {"sam": "SAM", "sam2": "SAM2", "sam2_video": "SAM2"}
"""`model_type` of a checkpoint to the method."""


def checkpoint_method(folder: Path) -> str:
    """Which method a checkpoint's folder is of, "SAM" or "SAM2".

    Raises:
        InputError: it is no folder of a transformers checkpoint of either.
    """
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--sam-checkpoint {folder} has no config.json of a transformers checkpoint ({error}); "
            f"give the folder that holds config.json, model.safetensors and "
            f"preprocessor_config.json"
        ) from error
    if kind not in TYPES:
        raise InputError(
            f"--sam-checkpoint {folder} is of the type {kind!r}, which is none of "
            f"{', '.join(TYPES)}; give a checkpoint of SAM or SAM2"
        )
    return TYPES[kind]


class Prompted:
    """A checkpoint that segments what points of the truth show it.

    Args:
        folder: of the checkpoint.
        device: to compute on.

    Attributes:
        parameters: of the network.

    Raises:
        InputError: the checkpoint is damaged or incomplete.
        EnvironmentMismatchError: transformers is not installed.
    """

    def __init__(self, folder: Path, device: str) -> None:
        name = {"SAM": "Sam", "SAM2": "Sam2Video"}[checkpoint_method(folder)]
        transformers = library("transformers")
        try:
            # Fixed here: nothing is ever downloaded.
            self._processor = getattr(transformers, f"{name}Processor").from_pretrained(
                folder, local_files_only=True
            )
            network = getattr(transformers, f"{name}Model").from_pretrained(
                folder, local_files_only=True
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(
                f"--sam-checkpoint {folder} cannot be loaded ({error}); download it again"
            ) from error
        self._network: Any = network.to(device).eval()
        self._device = device
        self.parameters = sum(p.numel() for p in network.parameters())

    @torch.inference_mode()
    def picture(
        self,
        image: NDArray[np.uint8],
        truth: NDArray[np.integer[Any]],
        patch: Sequence[int],
        seed: int,
    ) -> NDArray[np.uint8]:
        """SAM's labels of a picture, patch by patch.

        Args:
            image: (y, x, 3).
            truth: (y, x), 0 the background.
            patch: rows and columns of a patch; patches do not overlap.
            seed: of the points.

        Returns:
            (y, x); where masks overlap the more certain class.
        """
        generator = np.random.default_rng(seed)
        labels = np.zeros(truth.shape, np.uint8)
        for rows in _spans(truth.shape[0], patch[0]):
            for columns in _spans(truth.shape[1], patch[1]):
                there = truth[rows, columns]
                classes = _classes(there)
                if classes:
                    given = [_points(there == label, POINTS, generator) for label in classes]
                    logits = self._masks(image[rows, columns], given)
                    labels[rows, columns] = _combined(logits, classes)
        return labels

    def _masks(
        self, image: NDArray[np.uint8], points: Sequence[NDArray[np.float64]]
    ) -> NDArray[np.float32]:
        """Logits (class, y, x) of a patch for the points (x, y) of each class."""
        found = []
        embedding = None
        for own in points:
            asked = self._processor(
                images=image, input_points=[own[None].tolist()], return_tensors="pt"
            )
            if embedding is None:
                pixels = asked["pixel_values"].to(self._device)
                embedding = self._network.get_image_embeddings(pixels)
            answer = self._network(
                image_embeddings=embedding,
                input_points=asked["input_points"].float().to(self._device),
                multimask_output=False,
            )
            (mask,) = self._processor.post_process_masks(
                answer.pred_masks.float().cpu(),
                asked["original_sizes"],
                asked["reshaped_input_sizes"],
                binarize=False,
            )
            found.append(mask.reshape(image.shape[:2]).numpy())
        return np.stack(found)

    @torch.inference_mode()
    def clip(
        self, frames: NDArray[np.uint8], truth: NDArray[np.integer[Any]], seed: int
    ) -> NDArray[np.uint8]:
        """SAM2's labels of a clip.

        Args:
            frames: (frame, y, x, 3).
            truth: (frame, y, x), 0 the background.
            seed: of the points.

        Returns:
            (frame, y, x); where masks overlap the more certain class.
        """
        generator = np.random.default_rng(seed)
        classes = _classes(truth)
        labels = np.zeros(truth.shape, np.uint8)
        best = np.zeros(truth.shape, np.float32)
        for label in classes:
            first = int(np.argmax((truth == label).any((1, 2))))
            point = _points(truth[first] == label, 1, generator)
            for number, mask in self._followed(frames, first, point):
                wins = mask > best[number]
                best[number][wins] = mask[wins]
                labels[number][wins] = label
        return labels

    def _followed(
        self, frames: NDArray[np.uint8], first: int, point: NDArray[np.float64]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Logits (y, x) of one object in each frame from the first on."""
        session = self._processor.init_video_session(
            video=list(frames), inference_device=self._device
        )
        self._processor.add_inputs_to_inference_session(
            inference_session=session,
            frame_idx=first,
            obj_ids=1,
            input_points=[[point.tolist()]],
            input_labels=[[[1]]],
        )
        self._network(inference_session=session, frame_idx=first)
        for answer in self._network.propagate_in_video_iterator(session, start_frame_idx=first):
            (mask,) = self._processor.post_process_masks(
                [answer.pred_masks.float().cpu()], [frames.shape[1:3]], binarize=False
            )
            yield int(answer.frame_idx), mask.reshape(frames.shape[1:3]).numpy()


def as_pictures(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Channels of an image as pictures (z, y, x, 3) for these networks.

    Three channels are red, green and blue, of others the first is grey. What is not within 0 to
    255 already is scaled to it.

    Args:
        image: (channel, z, y, x).
    """
    chosen = image if len(image) == 3 else np.repeat(image[:1], 3, axis=0)
    low, high = float(chosen.min()), float(chosen.max())
    if low < 0 or high > 255 or high <= 1:
        chosen = (chosen - low) * (255 / max(high - low, 1e-9))
    return np.ascontiguousarray(np.moveaxis(chosen.round().astype(np.uint8), 0, -1))


def _spans(cells: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, cells)) for first in range(0, cells, size)]


def _classes(truth: NDArray[np.integer[Any]]) -> list[int]:
    return [int(label) for label in np.unique(truth) if 0 < label < 255]


def _points(
    mask: NDArray[np.bool_], count: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """(count, 2): x and y of random pixels of a mask, the same again if it has fewer."""
    places = np.argwhere(mask)[:, ::-1]
    chosen = generator.choice(len(places), count, replace=len(places) < count)
    return places[chosen].astype(np.float64)


def _combined(logits: NDArray[np.float32], classes: Sequence[int]) -> NDArray[np.uint8]:
    """The class with the largest logit above 0, else the background."""
    labels = np.array(classes, np.uint8)[logits.argmax(0)]
    labels[logits.max(0) <= 0] = 0
    return labels
