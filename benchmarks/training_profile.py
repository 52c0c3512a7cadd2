"""Where the time of a training goes, and how many times as fast as another checkout it trains.

    python benchmarks/training_profile.py --prepared FOLDER
    python benchmarks/training_profile.py --prepared FOLDER --set crop_shape=24,32,24 \\
        --set crop_levels=1
    python benchmarks/training_profile.py --made 40,56,40 --channels 32
    python benchmarks/training_profile.py --prepared FOLDER --against OTHER_CHECKOUT --json
    python benchmarks/training_profile.py --per_channels 16,24,32,48,64

FOLDER is what `hippocampus.py --work FOLDER` leaves: a data set preprocessed, with OctreeNCA's
plans, whose 3d_fullres is trained. It is read only. With --made, batches are noise, ready before
they are asked for.

The profile: OctreeNCATrainerTimeBudget trains for --seconds as its command would, with a stopwatch
on each part. A part's time is without that of the parts within it, so that the rows add up to the
whole. Milliseconds are per iteration. `processor` is the processor time of this process, `workers`
that of the processes that prepare batches; both share the machine's processors.

With --against, both checkouts (their own modules, compiled too) take turns: --seconds of training
each, --rounds times, the first to train alternating. `ratio` is that of iterations a minute, the
median over the rounds, by the clock: batches, validation, checkpoints and pictures are part of it.
`processor_ratio` compares the processor time of the training processes.
With --per_channels: nanoseconds of processor time that a cell's step takes on one thread, forward
and backward, by channels C with H = 4 C hidden units, on a 3-D level of 20 x 28 x 20 cells and a
2-D one of 160 x 160; `gflops` counts the multiplications and additions of the cells that fire.

The first seconds of every turn, while processes start, are not counted. A turn is the beginning of
a training of --minutes, which decides how often it validates; 36 s are three epochs of ten minutes.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
WARM_UP = 8  # iterations before the stopwatch starts


class Stopwatch:
    """Seconds of nested parts, each without those within it.

    Args:
        clock: time.perf_counter or time.process_time.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = clock()

    def _charge(self) -> None:
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def enter(self, part: str) -> None:
        """Begin a part."""
        self._charge()
        self._open.append(part)

    def leave(self) -> None:
        """End the part begun last."""
        self._charge()
        self._open.pop()

    def switch(self, part: str) -> None:
        """End the part begun last and begin another."""
        self.leave()
        self.enter(part)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within, time is this part's."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def wrap(self, holder: Any, name: str, part: str | Callable[..., str]) -> None:
        """Time a function where it is looked up; nothing is done where there is none."""
        function = getattr(holder, name, None)
        if function is None:
            return

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part if isinstance(part, str) else part(*args, **kwargs)):
                return function(*args, **kwargs)

        setattr(holder, name, timed)

    def reset(self) -> None:
        """Forget what was measured so far."""
        self._charge()
        self.seconds.clear()


# ------------------------------------------------------------------ a trainer


def prepared_plans(folder: Path, configuration: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The OctreeNCA plans in the folder, the same for both checkouts, with these settings."""
    plans: dict[str, Any] = json.loads((folder / "nnUNetOctreeNCAPlans.json").read_text())
    plans["configurations"] = {configuration: plans["configurations"][configuration]}
    plans["configurations"][configuration]["octreenca"].update(settings)
    return plans


def in_scratch_folders(work: Path) -> None:
    """nnU-Net's three folders in a new one."""
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(parents=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)


def make_trainer(given: argparse.Namespace, work: Path) -> Any:
    """The trainer, ready to train, writing to `work` only."""
    in_scratch_folders(work)
    import torch

    from nnunet_octreenca.integration.time_budget import OctreeNCATrainerTimeBudget
    from nnunet_octreenca.planning import extend_plans

    torch.set_num_threads(given.threads)
    settings = dict(pair for pair in map(parsed, given.set))
    if given.prepared:
        (source,) = (Path(given.prepared) / "preprocessed").glob("Dataset*")
        folder = work / "preprocessed" / source.name
        folder.mkdir()
        for entry in source.iterdir():
            (folder / entry.name).symlink_to(entry.resolve())
        description = json.loads((source / "dataset.json").read_text())
        plans = prepared_plans(source, "3d_fullres", settings)
    else:
        from untrained_model import stock_plans

        shape = [int(n) for n in given.made.split(",")]
        stock = stock_plans(shape)
        plans = extend_plans(
            stock, input_channels=1, num_classes=3, foreground_labels=2, has_regions=False,
            settings=settings,
        )  # fmt: skip
        description = {
            "channel_names": {"0": "noise"},
            "labels": {"background": 0, "first": 1, "second": 2},
            "numTraining": 5,
            "file_ending": ".nii.gz",
        }
        folder = work / "preprocessed" / stock["dataset_name"]
        (name,) = plans["configurations"]
        (folder / f"nnUNetPlans_{name}").mkdir(parents=True)
        (folder / f"nnUNetPlans_{name}" / "case_0.b2nd").touch()
        (folder / "dataset.json").write_text(json.dumps(description))
        (folder / "dataset_fingerprint.json").write_text("{}")
    (configuration,) = plans["configurations"]
    if given.channels:
        sizes = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
        sizes.update(channels=given.channels, hidden=4 * given.channels)
    trainer = OctreeNCATrainerTimeBudget(
        {**plans, "continue_training": False}, configuration, 0, description, torch.device("cpu")
    )
    if not given.prepared:
        use_noise(trainer)
    return trainer


def parsed(pair: str) -> tuple[str, Any]:
    """KEY=VALUE as `extend_plans --set` reads it, or whole numbers with commas between."""
    from nnunet_octreenca.cli.extend_plans import parse_settings

    key, _, text = pair.partition("=")
    if "," in text:
        return key, [int(part) for part in text.split(",")]
    return key, parse_settings([pair])[key]


def use_noise(trainer: Any) -> None:
    """The same batch of noise, again and again."""
    import torch

    generator = torch.Generator().manual_seed(0)
    configuration = trainer.configuration_manager
    shape = (configuration.batch_size, 1, *configuration.patch_size)
    batch = {
        "data": torch.randn(shape, generator=generator),
        "target": torch.randint(0, 3, shape, generator=generator).short(),
        "keys": ["noise"] * shape[0],
    }

    class Noise:
        def __next__(self) -> dict[str, Any]:
            return dict(batch)

        def close(self) -> None:
            pass

    trainer.get_dataloaders = lambda: (Noise(), Noise())


# ------------------------------------------------------------------ the profile


def attach(watch: Stopwatch, trainer: Any) -> None:
    """Stopwatches on all parts of a training."""
    import torch
    from torch.nn import utils

    from nnunet_octreenca.integration import trainer as module
    from nnunet_octreenca.network import octreenca
    from nnunet_octreenca.ops import cpu_engine

    def level_of(*arguments: Any, **named: Any) -> str:
        return str(next(a.level for a in (*arguments, *named.values()) if hasattr(a, "level")))

    watch.wrap(octreenca, "image_pyramid", "image pyramid")
    watch.wrap(octreenca.OctreeNCA, "_enter", "entering levels")
    watch.wrap(octreenca.OctreeNCA, "_descend", "network, rest")
    watch.wrap(cpu_engine, "forward", lambda *a, **k: f"steps forward, level {level_of(*a, **k)}")
    watch_descent(watch)
    watch.wrap(cpu_engine, "backward", lambda *a, **k: f"steps backward, level {level_of(*a, **k)}")
    watch.wrap(module, "crop_origins", "crop: origins")
    watch.wrap(module, "cut", "crop: cut")
    watch.wrap(utils, "clip_grad_norm_", "gradient clip")
    for name, part in (
        ("_iteration_seed", "seeds"),
        ("_set_learning_rate", "learning rate"),
        ("train_step", "train_step, rest"),
        ("validation_step", "epoch: validation steps"),
        ("on_validation_epoch_start", "epoch: average into the network"),
        ("on_train_epoch_start", "epoch: average into the network"),
        ("save_checkpoint", "epoch: checkpoints"),
        ("print_to_log_file", "epoch: log"),
        ("on_epoch_end", "epoch: rest"),
    ):
        watch.wrap(trainer, name, part)
    watch.wrap(trainer.logger, "plot_progress_png", "epoch: progress.png")

    def attach_initialized() -> None:
        watch.wrap(trainer.optimizer, "step", "optimiser")
        watch.wrap(trainer.average, "update", "weight average")
        trainer.loss.forward = timed_loss(watch, trainer.loss.forward)
        for name, part in (
            ("dataloader_train", "waiting for the batch"),
            ("dataloader_val", "waiting for a validation batch"),
        ):
            setattr(trainer, name, TimedBatches(watch, getattr(trainer, name), part))

    start = trainer.on_train_start

    def on_train_start() -> None:
        start()
        attach_initialized()

    trainer.on_train_start = on_train_start
    backward = torch.Tensor.backward

    def timed_backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        with watch.part("loss backward"):
            backward(self, *args, **kwargs)

    torch.Tensor.backward = timed_backward  # type: ignore[method-assign]


def watch_descent(watch: Stopwatch) -> None:
    """Stopwatches on the parts of `ops.cpu_training`, where the checkout has it."""
    from nnunet_octreenca.ops import native

    module: Any = native.cpu_module()
    if not hasattr(module, "enter"):
        return
    watch.wrap(module, "enter", "entering levels")
    watch.wrap(module, "heads", "network, rest")
    watch.wrap(module, "heads_backward", "backward between the levels")
    watch.wrap(module, "enter_backward", "backward between the levels")
    for name, word in (("steps_forward", "forward"), ("steps_backward", "backward")):
        # The level's number stands behind steps and seed.
        place = 4 if word == "forward" else 7
        watch.wrap(module, name, lambda *a, w=word, p=place: f"steps {w}, level {a[p]}")


def timed_loss(watch: Stopwatch, loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss, whose backward pass ends when the gradient of the heads is there."""

    def timed(heads: Any, target: Any) -> Any:
        if heads.requires_grad:
            heads.register_hook(lambda grad: watch.switch("backward between the levels"))
        with watch.part("loss forward"):
            return loss(heads, target)

    return timed


class TimedBatches:
    """A data loader with a stopwatch."""

    def __init__(self, watch: Stopwatch, batches: Any, part: str) -> None:
        self._watch, self._batches, self._part = watch, batches, part

    def __next__(self) -> Any:
        with self._watch.part(self._part):
            return next(self._batches)

    def close(self) -> None:
        """Close the loader."""
        self._batches.close()

    @property
    def pids(self) -> list[int]:
        """The processes that make the batches."""
        return [process.pid for process, _ in getattr(self._batches, "_workers", [])]


def worker_seconds(trainer: Any) -> float:
    """Processor time of the processes that prepare batches; 0 where the system does not say."""
    total = 0
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        for pid in getattr(loader, "pids", []):
            stat = Path(f"/proc/{pid}/stat")
            if stat.is_file():
                fields = stat.read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def train(given: argparse.Namespace, watch: Stopwatch | None) -> dict[str, float]:
    """One training of --seconds after the warm-up; what it used, per iteration in ms."""
    with tempfile.TemporaryDirectory(prefix="training_profile_") as work:
        trainer = make_trainer(given, Path(work))
        os.environ["nnUNet_octreenca_minutes"] = str(given.minutes)
        if watch is not None:
            attach(watch, trainer)
        step, begun, used = trainer.train_step, {}, {}
        done = 0

        class Over(Exception):
            pass

        def now() -> dict[str, float]:
            return {
                "wall": time.perf_counter(),
                "processor": time.process_time(),
                "workers": worker_seconds(trainer),
            }

        def counted(batch: Any) -> Any:
            nonlocal done
            if done == WARM_UP:
                begun.update(now())
                if watch is not None:
                    watch.reset()
            if begun and time.perf_counter() - begun["wall"] >= given.seconds:
                used.update({key: value - begun[key] for key, value in now().items()})
                if watch is not None:
                    watch.leave()
                raise Over
            done += 1
            return step(batch)

        trainer.train_step = counted
        log = trainer.print_to_log_file
        trainer.print_to_log_file = lambda *a, **k: log(*a, **{**k, "also_print_to_console": False})
        if watch is not None:
            watch.enter("training loop, rest")
        try:
            trainer.run_training()
        except Over:
            pass
        finally:
            for loader in (trainer.dataloader_train, trainer.dataloader_val):
                loader.close()
        iterations = done - WARM_UP
        per_iteration = {key: 1000 * value / iterations for key, value in used.items()}
        return {"iterations": iterations, **per_iteration}


# ------------------------------------------------------------------ against another checkout


def turn(checkout: Path, given: argparse.Namespace) -> dict[str, float]:
    """One training in a process of its own, with that checkout's modules."""
    command = [sys.executable, str(HERE), "--turn", *sys.argv[1:]]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=checkout
    )
    report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return report


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Turns of this checkout and the other."""
    ours, theirs = HERE.parents[1], Path(given.against).resolve()
    rounds = []
    for number in range(given.rounds):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        used = {each: turn(each, given) for each in order}
        row = {
            f"{key}_{name}": round(used[each][key], 1)
            for key in ("wall", "processor")
            for name, each in (("this", ours), ("other", theirs))
        }
        rounds.append(row)
        print(f"ms an iteration: {row}", file=sys.stderr, flush=True)

    def ratio(key: str) -> float:
        ratios = [row[f"{key}_other"] / row[f"{key}_this"] for row in rounds]
        return round(statistics.median(ratios), 2)

    return {
        "iterations_a_minute": {
            name: round(60_000 / statistics.median(row[f"wall_{name}"] for row in rounds), 1)
            for name in ("this", "other")
        },
        "ratio": ratio("wall"),
        "processor_ratio": ratio("processor"),
        "rounds": rounds,
    }


def per_channels(counts: list[int], repetitions: int = 9) -> list[dict[str, Any]]:
    """Nanoseconds a cell and step, the fastest of some repetitions."""
    import torch

    from nnunet_octreenca.network.level import LevelNCA
    from nnunet_octreenca.ops import cpu_engine, native

    module: Any = native.cpu_module()
    kernels, steps = native.cpu_kernels(), 10
    rows = []
    for shape in ((20, 28, 20), (160, 160)):
        for channels in counts:
            torch.manual_seed(0)
            level = LevelNCA(len(shape), channels, 1, 4 * channels)
            torch.nn.init.normal_(level.update.weight, std=0.02)
            weights = [weight.detach().contiguous().numpy() for weight in level.weights()]
            first = torch.rand(1, *shape, channels).numpy()
            log = torch.zeros(steps, 1, *shape, channels - 1).numpy()
            draws = (steps, 1, 0, 1 << 31, [[0] * len(shape)])
            restored = (False,) if hasattr(cpu_engine, "descend") else ()
            times: dict[str, list[float]] = {"forward": [], "backward": []}
            for _ in range(repetitions):
                state, gradient = first.copy(), first.copy()
                begun = time.process_time()
                module.steps_forward(state, weights, *draws, log, kernels, 1, "auto", False)
                between = time.process_time()
                grads = [weight * 0 for weight in weights]
                module.steps_backward(
                    state, log, gradient, weights, grads, *draws, kernels, 1, *restored
                )
                times["forward"].append(between - begun)
                times["backward"].append(time.process_time() - between)
            cells = first[..., 0].size * steps
            fired = 0.5 * 2 * (3 ** len(shape) * channels + 4 * channels * (3 * channels - 1))
            best = {word: 1e9 * min(taken) / cells for word, taken in times.items()}
            rows.append(
                {
                    "shape": list(shape),
                    "channels": channels,
                    **{f"{word}_ns": round(ns, 1) for word, ns in best.items()},
                    "forward_gflops": round(fired / best["forward"]),
                    "backward_gflops": round(3 * fired / best["backward"]),
                }
            )
    return rows


def profile(given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds an iteration of every part, the longest first."""
    watch = Stopwatch(time.process_time if given.clock == "processor" else time.perf_counter)
    used = train(given, watch)
    rows = sorted(watch.seconds.items(), key=lambda row: -row[1])
    parts = {name: round(1000 * seconds / used["iterations"], 2) for name, seconds in rows}
    return {key: round(value, 1) for key, value in used.items()} | {"parts": parts}


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prepared", help="folder with nnU-Net's raw and preprocessed")
    source.add_argument("--made", default="40,56,40", help="cells of batches of noise")
    parser.add_argument("--set", action="append", default=[], help="as `extend_plans --set`")
    parser.add_argument("--channels", type=int, help="C of the cells; H is 4 C")
    parser.add_argument("--per_channels", help="numbers of channels to time a step with")
    parser.add_argument("--seconds", type=float, default=36, help="of a training (default: 36)")
    parser.add_argument("--minutes", type=float, default=10, help="its budget (default: 10)")
    parser.add_argument(
        "--clock",
        choices=["wall", "processor"],
        default="wall",
        help="of the stopwatch: processor time of all threads is disturbed less by other programs",
    )
    parser.add_argument("--against", help="another checkout, its module compiled")
    parser.add_argument("--rounds", type=int, default=5, help="with --against (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--turn", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    if "OMP_WAIT_POLICY" not in os.environ:  # read when PyTorch is loaded
        os.environ["OMP_WAIT_POLICY"] = "passive"
    if given.prepared:
        given.prepared = str(Path(given.prepared).resolve())
    if given.turn:
        print(json.dumps(train(given, None)))
        return
    if given.per_channels:
        rows = per_channels([int(count) for count in given.per_channels.split(",")])
        print(json.dumps(rows, indent=4) if given.json else "\n".join(map(str, rows)))
        return
    report = compare(given) if given.against else profile(given)
    if given.json:
        about = {"processor": platform.processor() or platform.machine(), "threads": given.threads}
        about["data"] = "prepared" if given.prepared else given.made
        print(json.dumps({**about, "settings": given.set, **report}, indent=4))
    elif given.against:
        rates = report["iterations_a_minute"]
        print(
            f"{rates['this']} against {rates['other']} iterations a minute: {report['ratio']} x "
            f"(processor time {report['processor_ratio']} x)"
        )
    else:
        print(
            f"{report['iterations']:.0f} iterations, {report['wall']:.1f} ms each; processor time: "
            f"{report['processor']:.1f} ms, and {report['workers']:.1f} ms of the workers"
        )
        for name, milliseconds in report["parts"].items():
            share = 100 * milliseconds / report[given.clock]
            print(f"{name:36} {milliseconds:9.2f} ms  {share:5.1f} %")


if __name__ == "__main__":
    main()
