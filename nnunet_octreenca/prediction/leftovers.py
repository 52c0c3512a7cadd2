"""What a killed run left in an output folder: files that were being written."""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from nnunet_octreenca.files import parse_temporary
from nnunet_octreenca.result_record import FOLDER, QUALITY, RECORDS


class Leftovers:
    """The temporary files of an output folder, listed once for all cases of a run.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: Path) -> None:
        self._found: dict[Path, list[tuple[Path, str]]] = defaultdict(list)
        for place in (folder, folder / FOLDER, folder / QUALITY, folder / RECORDS):
            if place.is_dir():
                for path in place.iterdir():
                    found = parse_temporary(path)
                    if found is not None:
                        target, what = found
                        self._found[target].append((path, what))

    def remove(self, targets: Iterable[Path]) -> None:
        """Remove what was being written for some results; who calls holds their case's lock.

        A result that was moved aside while its replacement was being put in its place comes back.
        """
        for target in targets:
            for path, what in self._found.pop(target, []):
                if what == "old" and not os.path.lexists(target) and path.exists():
                    path.rename(target)
                elif path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
