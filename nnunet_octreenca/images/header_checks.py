"""Whether a file can be what its header promises, asked before anything is allocated."""

from pathlib import Path

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.resources import allocatable_memory, total_memory

# Deflate cannot do better than one bit for 258 / 2 bytes, 1032 : 1; a header that promises more
# than that of a compressed file is wrong.
DEFLATE_AT_BEST = 1032


def require_memory(path: Path, wanted: int) -> None:
    """Refuse what does not fit.

    Args:
        path: of the file; named in the error.
        wanted: bytes that reading it would allocate at once.

    Raises:
        InputError: the machine has less, or less is left.
    """
    limit = total_memory()
    if wanted > limit:
        raise InputError(
            f"{path} needs {wanted / 1e9:,.1f} GB in memory and this machine has "
            f"{limit / 1e9:,.1f} GB; check that the file's header is right"
        )
    left, source = allocatable_memory()
    if wanted > left:
        raise InputError(
            f"{path} needs {wanted / 1e9:,.1f} GB in memory and {left / 1e9:,.1f} GB are left "
            f"({source}); close other programs, raise the limit, or use a format that is read in "
            f"parts (tiled TIFF, OME-Zarr)"
        )


def require_deflated(path: Path, promised: int, stored: int) -> None:
    """Refuse a header that promises more than a deflated file of this size can hold.

    Args:
        path: of the file; named in the error.
        promised: bytes after decompression, as the header has it.
        stored: bytes of the file.

    Raises:
        InputError: no deflated data are so small.
    """
    if promised > DEFLATE_AT_BEST * stored:
        raise InputError(
            f"the header of {path} promises {promised:,} bytes, which the file's {stored:,} bytes "
            f"cannot hold; it is damaged or truncated"
        )
