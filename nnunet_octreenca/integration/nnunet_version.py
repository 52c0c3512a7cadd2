"""Check that the installed nnU-Net is supported."""

import re
from importlib.metadata import PackageNotFoundError, version

from nnunet_octreenca.errors import EnvironmentMismatchError

MINIMUM_NNUNET = (2, 8)


def nnunet_version() -> str:
    """The installed nnU-Net's version.

    Raises:
        EnvironmentMismatchError: nnU-Net is missing or older than 2.8.
    """
    try:
        installed = version("nnunetv2")
    except PackageNotFoundError as error:
        raise EnvironmentMismatchError(
            "nnU-Net is not installed in this environment; run `pip install 'nnunetv2>=2.8'`"
        ) from error
    numbers = tuple(int(n) for n in re.findall(r"\d+", installed)[:2])
    if numbers < MINIMUM_NNUNET:
        raise EnvironmentMismatchError(
            f"nnU-Net {installed} is too old; OctreeNCA needs 2.8 or later: run `pip install -U "
            f"'nnunetv2>=2.8'`"
        )
    return installed
