"""A model, pictures, and processes to make clusters of."""

import tempfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.clusters import Cluster, Forker
from helpers.s3_server import empty_server
from helpers.slurm import Slurm
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.cluster import address, client, workers
from nnunet_octreenca.cluster.address import connected
from nnunet_octreenca.cluster.client import ClusterRun, Request
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.prediction.earlier import Destination
from nnunet_octreenca.prediction.folder import Run, predict
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.prediction.remote import remote_of, results_folder
from nnunet_octreenca.stores import faults

PLAIN = Options(mirror=False)


@pytest.fixture(scope="session")
def forker(tmp_path_factory):
    forker = Forker(tmp_path_factory.mktemp("forked") / "log.txt")
    yield forker
    forker.close()


@pytest.fixture
def cluster(forker):
    cluster = Cluster(forker)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def controller():
    """A real SLURM of one node."""
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:  # short: it holds a socket
        slurm = Slurm(Path(folder))
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.close()


@pytest.fixture
def s3(monkeypatch):
    """The empty store, with its credentials in the environment of the client."""
    monkeypatch.setattr(faults, "FIRST_PAUSE", 0.001)
    yield from empty_server(monkeypatch)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "rgb")


@pytest.fixture(scope="session")
def model(model_path):
    return load_model(model_path)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Nothing is worth waiting for long on one machine."""
    monkeypatch.setattr(address, "CONNECT", 8.0)
    monkeypatch.setattr(client, "CALL", 60.0)
    monkeypatch.setattr(client, "ALL_HERE", 3.0)
    monkeypatch.setattr(workers, "_INTERVAL", 0.5)
    monkeypatch.setenv("nnUNet_octreenca_wait_limit", "240")


@pytest.fixture
def pictures(tmp_path):
    """`pictures("a", "slow_b")` are small pictures of these names in a folder."""

    def make(*names, shape=(40, 44)):
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        for seed, name in enumerate(names):
            pixels = np.random.default_rng(seed).integers(0, 255, (*shape, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}.png")
        return folder

    return make


@pytest.fixture
def segment(model, tmp_path):
    """`segment(cluster, source)` segments a folder on a cluster and says what became of it."""

    def on(
        cluster,
        source,
        *,
        output=tmp_path / "out",
        resume=False,
        attach=False,
        options=PLAIN,
        tick=lambda *about: None,
        **request,
    ):
        remote = remote_of(source, output)
        destination = Destination(results_folder(output, remote), None, False, resume)
        run = Run(model, destination, options, remote=remote, hash_inputs=True)
        told = []
        with closing(run), connected(cluster.address, None) as connection:
            on_cluster = ClusterRun(
                run,
                Request(cluster.address, attach=attach, **request),
                source,
                connection.client,
                tell=told.append,
            )
            found = SimpleNamespace(run=run, told=told, records=on_cluster.records)
            on_cluster.segment(run.cases(source), tick=lambda: tick(found, connection.client))
        return found

    return on


@pytest.fixture
def same_as_one_process(model, tmp_path):
    """Asserts that all results are the files that one process writes."""

    def compare(source, *, but=(), options=None):
        options = {"mirror": False, **(options or {})}
        alone = tmp_path / "alone"
        run = predict(source, alone, model, **options)
        cases = [done for done in run.done if done.case not in but]
        assert cases
        for done in cases:
            for path in map(Path, done.outputs):
                name = path.relative_to(alone)
                assert (tmp_path / "out" / name).read_bytes() == path.read_bytes(), name
        return len(cases)

    return compare
