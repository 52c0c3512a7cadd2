"""Two methods from the command to the report, with real trainings."""

import pytest

from nnunet_octreenca.files import read_json


@pytest.mark.slow
@pytest.mark.nightly
def test_two_methods_from_end_to_end(nnunet, tmp_path):
    """Trainings by the clock in processes of their own, one of them killed and continued."""
    import signal
    import subprocess
    import sys
    import time

    out = tmp_path / "report"
    words = ["-d", "901", "-c", "3d_fullres", "--methods", "TinyUNet", "M3D-NCA", "--cases", "1"]
    words += ["--budget", "10s", "--memory", "300M", "-device", "cpu", "--metrics", "dice"]
    words += ["-o", str(out)]
    command = [sys.executable, "-m", "nnunet_octreenca.cli.main", "compare", *words]
    results = nnunet.results / "Dataset901_Phantoms"
    latest = results / "TinyUNetTrainer__nnUNetPlans_10s__3d_fullres/fold_0/checkpoint_latest.pth"
    process = subprocess.Popen(command, env=nnunet.environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not latest.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert not (latest.parent / "training.json").exists()
    nnunet.run("python", *command[1:])
    facts = read_json(latest.parent / "training.json", "")
    assert 10 <= facts["seconds"] < 60
    assert facts["parameters"] > 20_000
    assert not latest.exists()
    records = read_json(out / "records.json", "")["methods"]
    for record in records.values():
        assert 0 < record["network_seconds"] <= record["case_seconds"] < record["cold_seconds"]
        assert record["iterations"] >= 1
        assert len(record["curves"][1]["points"]) >= 1
    if sys.platform == "linux":
        assert records["TinyUNet"]["bytes_per_voxel"] > 20  # six channels of float32 and more
    content = read_json(out / "comparison.json", "")
    summary = read_json(latest.parent / "validation" / "summary.json", "")
    means = {row["method"]: row["interval"]["mean"] for row in content["summary"]
             if row["class_name"] == "mean of classes"}  # fmt: skip
    assert means["TinyUNet"] == pytest.approx(summary["foreground_mean"]["Dice"])
    assert (out / "report.html").stat().st_size > 10_000
