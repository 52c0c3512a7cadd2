"""How images are segmented: what holds for all cases of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.inference.passes import Member
from nnunet_octreenca.integration.model import Model, load_model
from nnunet_octreenca.ops.fire import CERTAIN, fire_threshold

SAMPLE_FIRE_RATE = 0.95
"""Of samples of a network whose cells always fire, so that there is chance to compare them by.

Of 0.5, 0.8, 0.9 and 0.95 it told good from bad cases best (docs, "Find the doubtful results").
"""


@dataclass(frozen=True)
class Options:
    """Choices of a prediction.

    Attributes:
        mirror: average mirrored copies along the axes that the training allows.
        seeds: of the fire draws; the logits are averaged over them. None for the model's one. All
            are the same to a network whose cells always fire.
        mpp: microns per pixel to read slides at; None for their finest level.
        series: SeriesInstanceUID to read, of folders with several DICOM series.
        tissue: leave out bands of a slide without tissue; their label is 0.
        float16: keep states in float16, which halves them and changes some labels.
        memory: bytes that the process may use in all; None for what is free.
        band_rows: rows (2-D) or planes (3-D) of a band; None for the planner's choice.
        quality: how many seeds are compared to say how sure the model is; None for no such thing.
            Where `seeds` are not given, they are as many from the model's on. Samples of a network
            whose cells always fire are taken at `SAMPLE_FIRE_RATE`, beside its result.
        probabilities: with `quality`, keep the probabilities of all classes.

    Raises:
        InputError: a number is below what it can be, or there is no seed.
    """

    mirror: bool = True
    seeds: Sequence[int] | None = None
    mpp: float | None = None
    series: str | None = None
    tissue: bool = False
    float16: bool = False
    memory: int | None = None
    band_rows: int | None = None
    quality: int | None = None
    probabilities: bool = False

    def __post_init__(self) -> None:
        if self.seeds is not None:
            if not len(self.seeds):
                raise InputError("seeds are empty; give one, or None for the model's")
            object.__setattr__(self, "seeds", tuple(self.seeds))
        if self.mpp is not None and not self.mpp > 0:
            raise InputError(f"mpp ({self.mpp}) must be above 0 microns per pixel")
        if self.quality is not None:
            if self.quality < 2:
                raise InputError(f"quality ({self.quality}) must be at least 2 seeds")
            if self.seeds is not None and len(set(self.seeds)) != self.quality:
                raise InputError(
                    f"quality compares {self.quality} seeds, but {len(set(self.seeds))} different "
                    f"ones were given; leave them out, or give as many"
                )
        elif self.probabilities:
            raise InputError("probabilities are kept with quality only; give --quality 4")
        for name, value in (("memory", self.memory), ("band_rows", self.band_rows)):
            if value is not None and value < 1:
                raise InputError(f"{name} ({value}) must be at least 1")

    def seeds_of(self, model: Model) -> tuple[int, ...]:
        """The seeds, the model's where none was chosen."""
        if self.seeds is not None:
            return tuple(self.seeds)
        return tuple(range(model.seed, model.seed + (self.quality or 1)))

    def members_of(self, model: Model) -> list[Member]:
        """Every network with every seed, network by network.

        Where its cells always fire, a network is there once; with `quality` its samples follow.
        """
        seeds = self.seeds_of(model)
        if not always_fires(model):
            return [Member(network, seed) for network in model.networks for seed in seeds]
        members = []
        for network in model.networks:
            members.append(Member(network, seeds[0]))
            if self.quality is not None:
                sampled = network.at_fire_rate(SAMPLE_FIRE_RATE)
                members += [Member(sampled, seed) for seed in seeds]
        return members

    def mirror_axes_of(self, model: Model) -> tuple[int, ...]:
        """Spatial axes that are mirrored."""
        return (model.mirror_axes or ()) if self.mirror else ()


def always_fires(model: Model) -> bool:
    """Whether every cell fires in every step, so that nothing depends on a seed."""
    return all(fire_threshold(network.fire_rate) == CERTAIN for network in model.networks)


def loaded(model: Model | Path | str, device: torch.device | str) -> Model:
    """The model itself, loaded if it is given as the folder of a training.

    Raises:
        InputError: the folder is no model's.
        CheckpointError, PlansError: as in `load_model`.
    """
    return model if isinstance(model, Model) else load_model(model, device=device)
