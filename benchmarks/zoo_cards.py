"""What the cards of the zoo's models say, and the Markdown of a card."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nnunet_octreenca.comparison.statistics import Interval


class Entry(NamedTuple):
    """A model of the zoo.

    Attributes:
        dataset: key of recipe_data.DATA_SETS.
        task: for the list, one line.
        licence: of the model, an SPDX identifier.
        data: what it was trained on.
        terms: licence and citation.
        failures: what it gets wrong, known beforehand.
        use: intended, and not.
        group_by: regular expression that finds the person in a case's name; None: each case its
            own.
        subsets: name to the regular expression of its cases, for Dice of each.
        recipe_chosen_here: whether recipes of training were compared on these held-out cases.
    """

    dataset: str
    task: str
    licence: str
    data: str
    terms: str
    failures: str
    use: str
    group_by: str | None = None
    subsets: Mapping[str, str] = {}
    recipe_chosen_here: bool = True


NOT_MEDICAL = "It is not a medical device and must not be used for diagnosis or treatment."

ENTRIES = {
    "hippocampus": Entry(
        dataset="hippocampus",
        task="anterior and posterior hippocampus in T1 MRI cropped to it",
        licence="CC-BY-SA-4.0",
        data="""\
Task04 of the Medical Segmentation Decathlon: T1-weighted MRI (MPRAGE, 1 mm) of healthy adults and
of adults with a non-affective psychotic disorder, from one hospital, cropped to the surroundings of
one hippocampus (31-43 x 40-59 x 24-47 voxels). 208 labelled volumes were at hand. Labels:
1 anterior, 2 posterior hippocampus. The data set does not say which volumes are of the same person:
one side may have been trained on and the other held out.""",
        terms="""\
Data and model: [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/). The volumes were
normalized; the weights were derived from them. Cite Antonelli et al., "The Medical Segmentation
Decathlon", Nature Communications 13, 4128 (2022).""",
        failures="""\
The volume must be cropped to one hippocampus as those of the data set are. On a whole head the
labels mean nothing. Other scanners, sequences, field strengths, children, atrophy and lesions were
not tested. The border between anterior and posterior is a convention of the data set's readers.""",
        use=f"""\
To try the software on real MRI, to teach, and as a starting point for training
(`-pretrained_weights`). {NOT_MEDICAL}""",
    ),
    "vessels": Entry(
        dataset="vessels",
        task="retinal vessels in colour fundus photographs, about 30 pixels per degree",
        licence="CC-BY-4.0",
        data="""\
CHASE_DB1: both eyes of 10 children (20 photographs of 999 x 960, 30 degrees, one camera; labels of
the first reader), 6 children to train on and 4 held out. Label: 1 vessel.

Held out as well, as data of another kind: nine photographs of HRF with the vessel labels of
Hemelings et al. (3504 x 2336, 60 degrees; three healthy eyes, three with diabetic retinopathy,
three with glaucoma), halved in both directions (each pixel the mean of 2 x 2; a label where at
least half of them is vessel). They have 27 pixels per degree then, CHASE_DB1 has 32, and vessels of
5.1 and 6.7 pixels on average (area of the labels over length of their skeletons).""",
        terms="""\
Data and model: [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/). The weights were derived
from CHASE_DB1's photographs and labels; nothing was trained on HRF. Cite Fraz et al., "An Ensemble
Classification-Based Approach Applied to Retinal Blood Vessel Segmentation", IEEE Transactions on
Biomedical Engineering 59 (2012); for HRF Budai et al., "Robust Vessel Segmentation in Fundus
Images", International Journal of Biomedical Imaging (2013), and Hemelings et al., "Artery-vein
segmentation in fundus images using a fully convolutional network", Computerized Medical Imaging and
Graphics 76 (2019).""",
        failures="""\
Make photographs of other resolutions about 30 pixels per degree of the view first (HRF: half size);
the model does not know the scale. It was trained on healthy children's eyes from one camera; the
difference between CHASE_DB1 and HRF above is what another camera, adults and disease cost.
Expected, but not measured: vessels of one or two pixels are missed first, and rims of the disc,
haemorrhages and reflexes are taken for vessels. Wide-field, red-free and angiographic images were
not tested.""",
        use=f"""\
To try the software on photographs, to teach, and as a starting point for training
(`-pretrained_weights`). {NOT_MEDICAL}""",
        group_by=r"Image_\d+|.+",
        subsets={"CHASE_DB1": r"Image_\d+", "HRF at half size": "hrf_"},
    ),
    "phantoms": Entry(
        dataset="phantoms",
        task="organ and lesion in made volumes, to try and to test the software",
        licence="Apache-2.0",
        data="""\
36 volumes made by `nnunet_octreenca.datasets.phantoms` (seed 13): an organ and, within it, a lesion
of a few voxels, in noise. Nobody's data. Labels: 1 organ, 2 lesion.""",
        terms="""\
Data and model: [Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0), as the package. There is
nothing to cite but the package.""",
        failures="""\
It knows nothing but phantoms: on real images the labels mean nothing.""",
        use=f"To see a prediction at once, and for tests. {NOT_MEDICAL}",
        recipe_chosen_here=False,
    ),
}  # fmt: skip


def card(
    name: str,
    entry: Entry,
    training: Sequence[str],
    dice: Sequence[tuple[str, Interval]],
    cases: Sequence[tuple[str, float]],
) -> str:
    """Markdown.

    Args:
        name: of the model, without "zoo:".
        entry: what is known beforehand.
        training: sentences.
        dice: of each class, and of each subset; the first is the model's figure.
        cases: held-out ones with their Dice.
    """
    worst = sorted(cases, key=lambda case: case[1])[:3]
    rows = "\n".join(
        f"| {what} | {each.cases} | {each.mean:.3f} | {each.low:.3f} to {each.high:.3f} |"
        for what, each in dice
    )
    return f"""\
# zoo:{name}

{entry.task[0].upper() + entry.task[1:]}.

    nnunet_octreenca predict -m zoo:{name} -i IN -o OUT

## Data

{entry.data}

## Licence and citation

{entry.terms}

## Training

{chr(10).join(training)}

## Dice on held-out cases

| | cases | mean | 95 % interval |
|---|---|---|---|
{rows}

Means over cases of this very model, predicted with `nnunet_octreenca predict` and its defaults.
Intervals are BCa bootstraps with 10,000 resamples of {_units(entry)}.
They do not contain what another seed would change.{_chosen(entry)}

## Failures

The lowest Dice: {", ".join(f"{case} {value:.3f}" for case, value in worst)}.

{entry.failures}

## Intended use

{entry.use}
"""


def _chosen(entry: Entry) -> str:
    if not entry.recipe_chosen_here:
        return ""
    return """
The recipe of training was chosen on data sets that include some of these cases, so that the figures
may be a little too good."""


def _units(entry: Entry) -> str:
    return "people" if entry.group_by else "cases, taken as independent"


def row(entry: Entry, first: Interval, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Of the index."""
    return {
        "task": entry.task,
        "licence": entry.licence,
        "dice": {
            "mean": round(first.mean, 6),
            "low": round(first.low, 6),
            "high": round(first.high, 6),
            "cases": first.cases,
        },
        "sha256": dict(sorted(hashes.items())),
    }
