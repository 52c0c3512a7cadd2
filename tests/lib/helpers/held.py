"""Preload of dask workers: a case with "held" in its name goes on when the file $HOLD has gone."""

import os
import time
from pathlib import Path

from nnunet_octreenca.prediction import folder


def _holding(stock):
    def segment_case(case, *arguments, progress=None, **options):
        def held(stage: str, rows: int) -> None:
            while True:
                if progress is not None:
                    progress(stage, rows)
                if "held" not in case.name or not Path(os.environ["HOLD"]).exists():
                    return
                time.sleep(0.1)

        return stock(case, *arguments, progress=held, **options)

    return segment_case


def dask_setup(worker) -> None:
    """What dask calls once in each worker."""
    folder.segment_case = _holding(folder.segment_case)
