"""What `compare --methods` refuses before it trains, each in one sentence."""

import pytest
from helpers.compared_methods import DATASET, jobs_of

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.comparison.trained import running
from nnunet_octreenca.comparison.trained.methods import METHODS, Method, find_methods
from nnunet_octreenca.errors import EnvironmentMismatchError


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods", "foo"], "there is no method 'foo'; choose from OctreeNCA, nnU-Net"),
        (["--methods", "octre"], "there is no method 'octre' (did you mean OctreeNCA?); choose"),
        (["--methods", "OctreeNCA", "octree-nca"], "names OctreeNCA twice"),
        (["--methods", "TinyUNet", "-f", "all"], "-f all has no held-out cases"),
        (["--methods", "TinyUNet", "-f", "2"], "-f 2 is none of the 2 folds, 0 to 1"),
        (["--methods", "TinyUNet", "-f", "0", "0"], "-f 0 0 names one twice"),
        (["--methods", "TinyUNet", "--budget", "60"], "must be a time such as 90s"),
        (["--methods", "TinyUNet", "--budget", "0m"], "must be a time such as 90s"),
        (["--methods", "TinyUNet", "--seeds", "-1"], "--seeds -1: seeds are 0 to"),
        (["--methods", "TinyUNet", "--cases", "0"], "--cases is 0"),
        (["--methods", "TinyUNet", "--memory", "much"], "'much' is not an amount of memory"),
        (["--methods", "TinyUNet", "--ablate", "steps=3"], "varies OctreeNCA; add it"),
        (["--methods", "OctreeNCA", "--ablate", "size=3"], "with a key of steps, levels"),
        (["--methods", "OctreeNCA", "--ablate", "steps=a"], "'a' is no number"),
        (["--methods", "OctreeNCA", "--ablate", "steps=nan"], "nan is not a finite number"),
        (["--methods", "OctreeNCA", "--ablate", "steps=1.5"], "must be a whole number"),
        (["--methods", "OctreeNCA", "--ablate", "levels=3"], "the plans have 2 levels"),
        (["--methods", "OctreeNCA", "--ablate", "lambda=3"], "dice_weight is 3"),
        (["--methods", "OctreeNCA", "--ablate", "steps=1,1"], "names steps=1 twice"),
        (["--methods", "Med-NCA"], "is for 2-D images, but configuration '3d_fullres' has 3 axes"),
        (["--methods", "nnU-Net ResEnc M"], "-d 907 -pl nnUNetPlannerResEncM"),
        (["--methods", "TinyUNet", "--collect"], "fold 0 of TinyUNet has not been trained"),
        (["--methods", "TinyUNet", "--truth", "x"], "--truth is for finished predictions"),
        (["--methods", "TinyUNet", "--group-by", "("], "is no regular expression"),
        (["--methods", "TinyUNet", "--tolerance", "nan"], "--tolerance is nan"),
        (["--methods", "TinyUNet", "--metrics", "none"], "none"),
        ([], "--methods must be given"),
    ],
)  # fmt: skip
def test_what_is_refused_before_training(prepared, monkeypatch, capsys, words, sentence):
    monkeypatch.setattr(running, "run_child", lambda *_, **__: pytest.fail("trained"))
    out = prepared / "report"
    assert main(["compare", "-d", "907", "-c", "3d_fullres", "-o", str(out), *words]) == 1
    assert sentence in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("what", ["configuration", "data", "raw", "images", "half"])
def test_missing_pieces(prepared, capsys, what):
    words = ["-d", "907", "-c", "3d_fullres", "--methods", "TinyUNet", "--collect"]
    if what == "configuration":
        words[3], sentence = "2d", "no configuration '2d'; it has 3d_fullres"
    elif what == "data":
        (prepared / "preprocessed" / DATASET / "nnUNetPlans_3d_fullres" / "a.b2nd").unlink()
        sentence = "nnUNetv2_preprocess -d 907 -plans_name nnUNetPlans -c 3d_fullres"
    elif what == "raw":
        (prepared / "raw" / DATASET / "dataset.json").unlink()
        sentence = "holds no dataset.json; put the raw data set back"
    elif what == "images":
        for path in (prepared / "raw" / DATASET / "imagesTr").iterdir():
            path.unlink()
        sentence = "holds no training images, on which predictions are timed; put imagesTr back"
    else:
        _, (job,) = jobs_of("TinyUNet")
        job.folder.mkdir(parents=True)
        (job.folder / "checkpoint_latest.pth").touch()
        sentence = "fold 0 of TinyUNet is half trained"
    assert main(["compare", *words, "-o", str(prepared / "report")]) == 1
    assert sentence in capsys.readouterr().err


def test_a_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setitem(METHODS, "Other", Method("Other", "OtherTrainer", needs=("no_such_lib",)))
    with pytest.raises(EnvironmentMismatchError, match=r"needs no_such_lib.*\[baselines\]"):
        find_methods(["Other"])
