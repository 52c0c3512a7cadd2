"""Zip files as nnUNetv2_export_model_to_zip writes them, and as it does not."""

import io
import pickle
import zipfile
from pathlib import Path

from untrained_model import model_folder

DATASET = "Dataset903_Hand"
MODEL = f"{DATASET}/OctreeNCATrainer__nnUNetOctreeNCAPlans__2d"


def exported_files(folder: Path) -> dict[str, bytes]:
    """Name to content of an exported model, made in a folder."""
    model = model_folder(folder / MODEL, folds=("0", "1"))
    for fold in ("0", "1"):
        (model / f"fold_{fold}/validation").mkdir()
        (model / f"fold_{fold}/validation/summary.json").write_text("{}")
        (model / f"fold_{fold}/progress.png").write_bytes(b"png")
    results = model / "crossval_results_folds_0_1"
    results.mkdir()
    for name in ("plans.json", "dataset.json"):  # as nnU-Net copies them, with --exp_cv_preds
        (results / name).write_bytes((model / name).read_bytes())
    (results / "postprocessing.pkl").write_bytes(pickle.dumps(([], [])))
    (model / "dataset_fingerprint.json").write_text("{}")
    (folder / DATASET / "inference_information.json").write_text("{}")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_zip(path: Path, files: dict[str | zipfile.ZipInfo, bytes]) -> Path:
    """A zip file, packed by deflate as nnU-Net does."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)
    path.write_bytes(buffer.getvalue())
    return path
