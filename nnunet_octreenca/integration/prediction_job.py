"""Times predictions of one model, in a process of its own that takes cases one by one.

`python -m ...prediction_job MODEL_FOLDER FOLD DEVICE`: each line of the standard input is a JSON
object with the image's `files` and `out`, the segmentation's path without its ending, and `memory`
where the network's memory is measured, which costs time; each answer is a line of JSON.
Everything is nnU-Net's own, step by step and in this process.
"""

import json
import os
import sys
import time
from math import prod
from typing import Any

import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.integration import predictor as whole_image
from nnunet_octreenca.integration.training_job import FINAL
from nnunet_octreenca.resources import forget_peak, peak_memory, resident_memory

whole_image.install()


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    folder, fold, device = sys.argv[1:4]
    predictor = load(folder, int(fold), torch.device(device))
    for line in sys.stdin:
        print(json.dumps(predict(predictor, json.loads(line))), file=answers, flush=True)


def load(folder: str, fold: int, device: torch.device) -> nnUNetPredictor:
    """A model in nnU-Net's predictor, with its defaults: half-overlapping windows, mirroring."""
    predictor = nnUNetPredictor(device=device, verbose=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(folder, (fold,), FINAL)
    return predictor


def predict(predictor: nnUNetPredictor, case: JsonMapping) -> JsonObject:
    """Segment a case from disk to disk.

    Returns:
        `seconds`, `network_seconds`, `voxels` (that the network sees), `peak_bytes` (of the
        process since it last measured memory), `network_bytes` (what its memory, on a GPU the
        GPU's, grows by in the network; null unless asked for) and `device_peak_bytes`; null where
        the system does not tell.
    """
    begun = time.monotonic()
    manager: Any = predictor.configuration_manager
    data, _, properties = manager.preprocessor_class(verbose=False).run_case(
        case["files"], None, predictor.plans_manager, manager, predictor.dataset_json
    )
    image = torch.from_numpy(data)
    cuda = predictor.device.type == "cuda"
    before_peak = peak_memory()
    known = bool(case.get("memory")) and forget_peak()
    before, device_before = resident_memory(), 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        device_before = torch.cuda.memory_allocated()
    started = time.monotonic()
    logits = predictor.predict_logits_from_preprocessed_data(image)
    network = time.monotonic() - started
    grown = peak_memory() - before if known else None
    device_peak = torch.cuda.max_memory_allocated() if cuda else None
    export_prediction_from_logits(
        logits,
        properties,
        manager,
        predictor.plans_manager,
        predictor.dataset_json,
        case["out"],
        False,
    )
    return {
        "seconds": time.monotonic() - begun,
        "network_seconds": network,
        "voxels": prod(image.shape[1:]),
        "peak_bytes": max(before_peak, peak_memory()),
        "network_bytes": grown if device_peak is None else device_peak - device_before,
        "device_peak_bytes": device_peak,
    }


if __name__ == "__main__":
    main()
