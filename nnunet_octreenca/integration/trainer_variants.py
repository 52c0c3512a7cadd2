"""Short and long trainings by name, as nnU-Net has them: OctreeNCATrainer_5epochs, ..."""

import torch

from nnunet_octreenca.integration.trainer import OctreeNCATrainer

EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500, 2000)


def _variant(epochs: int) -> type[OctreeNCATrainer]:
    name = f"OctreeNCATrainer_{epochs}epoch{'s' if epochs > 1 else ''}"

    def __init__(
        self: OctreeNCATrainer,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        OctreeNCATrainer.__init__(self, plans, configuration, fold, dataset_json, device)
        self.num_epochs = epochs

    return type(
        name,
        (OctreeNCATrainer,),
        {
            "__init__": __init__,
            "__doc__": f"OctreeNCATrainer for {epochs} epoch(s).",
            "__module__": __name__,
        },
    )


VARIANTS = {variant.__name__: variant for variant in map(_variant, EPOCHS)}
globals().update(VARIANTS)
