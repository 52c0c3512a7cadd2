"""Plan, train two iterations and predict with the installed commands: once per environment.

`python tools/matrix.py` runs what is marked `smoke` with other Pythons and library versions.
"""

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.smoke]


def test_plan_train_and_predict(new_nnunet, tmp_path):
    """Both ways of predicting give the labels that a network of this state can give."""
    import SimpleITK

    from nnunet_octreenca.datasets.phantoms import make_phantoms

    nnunet = new_nnunet(tmp_path / "nnunet")
    make_phantoms(nnunet.raw / "Dataset901_Phantoms", training=5, test=2, shape=(8, 18, 17))
    nnunet.run("nnUNetv2_plan_and_preprocess", "-d", 901, "-c", "3d_fullres", "-np", 1, "-npfp", 1)
    settings = {
        "num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1,
        "initial_lr": 0.02,
    }  # fmt: skip
    nnunet.run(
        "nnunet_octreenca", "extend_plans", "-d", 901, "--batch_size", 2,
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    )  # fmt: skip
    nnunet.train("3d_fullres", 0)
    images = nnunet.raw / "Dataset901_Phantoms" / "imagesTs"
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    nnunet.run(
        "nnUNetv2_predict", "-i", images, "-o", stock, "-d", 901, "-c", "3d_fullres", "-f", 0,
        "-tr", "OctreeNCATrainer", "-p", "nnUNetOctreeNCAPlans", "-device", "cpu",
        "-npp", 0, "-nps", 0,
    )  # fmt: skip
    nnunet.run(
        "nnunet_octreenca", "predict", "-m", nnunet.model(), "-i", images, "-o", ours,
        "-device", "cpu", "-f", 0,
    )  # fmt: skip
    names = sorted(path.name for path in stock.glob("*.nii.gz"))
    assert len(names) == 2
    for name in names:
        image = SimpleITK.ReadImage(str(images / name.replace(".nii.gz", "_0000.nii.gz")))
        one, other = (SimpleITK.ReadImage(str(folder / name)) for folder in (stock, ours))
        assert one.GetSize() == other.GetSize() == image.GetSize()
        labels = SimpleITK.GetArrayFromImage(one)
        assert np.array_equal(labels, SimpleITK.GetArrayFromImage(other))
        assert set(np.unique(labels)) <= {0, 1, 2}
