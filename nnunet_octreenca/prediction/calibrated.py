"""The calibration of a model, if it has one that was made with these weights."""

from collections.abc import Callable

from nnunet_octreenca.calibration_record import FILE, Calibration, read_calibration
from nnunet_octreenca.hashes import content_hash
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.prediction.options import Options


def model_files(model: Model) -> dict[str, str]:
    """Name below the model's folder to SHA-256 of every file that it was loaded from."""
    return {path.relative_to(model.folder).as_posix(): content_hash([path]) for path in model.files}


def usable_calibration(
    model: Model, options: Options, tell: Callable[[str], object]
) -> Calibration | None:
    """The model's calibration; None where there is none, or it is of other weights.

    Args:
        model: about to predict.
        options: with `quality`.
        tell: takes a line about a calibration that is left out, or was made otherwise.

    Raises:
        InputError: the file is damaged.
    """
    calibration = read_calibration(model.folder)
    if calibration is None:
        return None
    path = model.folder / FILE
    now = model_files(model)
    changed = [name for name in now if calibration.files.get(name) != now[name]]
    heads = model.networks[0].num_classes
    if changed or len(calibration.temperatures) != heads:
        tell(
            f"{path} is left out: it was not made with {', '.join(changed) or f'{heads} classes'} "
            f"as it is now; run `nnunet_octreenca calibrate` again"
        )
        return None
    seeds, mirror = len(options.seeds_of(model)), bool(options.mirror_axes_of(model))
    if (seeds, mirror) != (calibration.seeds, calibration.mirror):
        tell(
            f"note: {path} was made with {calibration.seeds} seeds and "
            f"{'' if calibration.mirror else 'no '}mirrored copies; scores of other settings are "
            f"not quite comparable"
        )
    if len(model.networks) > 1:
        tell(
            f"note: {path} was fitted to single folds; an ensemble of {len(model.networks)} is "
            f"mostly more certain and better"
        )
    return calibration
