"""What can go wrong, as types a caller can tell apart.

None of them is a `RuntimeError`: nnU-Net takes every RuntimeError while predicting for
"out of memory" and tries again on the CPU, which would hide the sentence we have to say.
"""


def first_line(error: object) -> str:
    """What an exception says, in one line.

    >>> first_line(ValueError("one line\\nand another")), first_line(ValueError())
    ('one line', 'ValueError')
    """
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


class OctreeNCAError(Exception):
    """Base class: the message is one sentence on what was wrong and what to do next."""


class PlansError(OctreeNCAError):
    """A plans file is missing, is not OctreeNCA's, or holds a value that cannot be used."""


class InputError(OctreeNCAError):
    """An image, a data set or a folder cannot be used as it is."""


class NotFiniteError(InputError):
    """The automaton's state or its logits became NaN or infinite: there is no segmentation."""


class OutputError(OctreeNCAError):
    """A result cannot be written: it exists, the disk is full, the format cannot hold it."""


class NoRoomError(OutputError):
    """What a result will take is more than its disk has left."""


class LockedError(OctreeNCAError):
    """Another process works in the same folder, or on the same case."""


class CheckpointError(OctreeNCAError):
    """A checkpoint does not belong to this network or trainer, or cannot be read."""


class TrainingError(OctreeNCAError):
    """Training cannot continue."""


class WorkerError(OctreeNCAError):
    """A process or thread that works for this one died, or gives no sign of life."""


class OutOfMemoryError(OctreeNCAError):
    """The memory that an image or a plan needs is not there."""


class EnvironmentMismatchError(OctreeNCAError):
    """The installation does not fit: nnU-Net too old, variables unset, folder read-only."""


class CudaError(OctreeNCAError):
    """The CUDA engine cannot compile or run its kernels."""
