"""Files of which only the names lie on this machine's disk: their content comes when it is read.

`stores` puts empty files in the places of a store's objects. Whoever opens images asks here, so
that readers need not know where an image lies; a file that nobody registered is opened as ever.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Protocol


class DeferredTree(Protocol):
    """Files below a folder whose content lies elsewhere."""

    def open(self, path: Path) -> BinaryIO:
        """The content of a file, seekable; what is read is fetched.

        Raises:
            InputError: it is no longer there, or was changed.
        """
        ...

    def fetch(self, path: Path) -> None:
        """Have a file, or all files of a folder, lie whole in their places.

        Raises:
            InputError: one is no longer there, was changed, or is larger than may be fetched.
            OutputError: there is no room for them.
        """
        ...

    def keeping(self, path: Path) -> AbstractContextManager[object]:
        """Context in which what is read of a file comes to lie in its place.

        Raises:
            OutputError: (inside) there is no room for it.
        """
        ...

    def is_whole(self, path: Path) -> bool:
        """Whether the whole content lies in the file's place."""
        ...

    def version(self, path: Path) -> str:
        """What changes with the content, without reading it."""
        ...

    def refresh(self) -> None:
        """Look again which versions there are.

        Raises:
            InputError: a file is no longer there.
        """
        ...


_trees: dict[Path, DeferredTree] = {}


@contextmanager
def deferring(folder: Path, tree: DeferredTree) -> Iterator[None]:
    """Context in which the files below a folder are those of a tree."""
    folder = folder.absolute()
    _trees[folder] = tree
    try:
        yield
    finally:
        del _trees[folder]


def is_deferred(path: Path) -> bool:
    """Whether a path is one of a deferred file or folder, whole by now or not."""
    return _tree(path) is not None


def is_whole(path: Path) -> bool:
    """Whether a file's content is what lies in its place."""
    tree = _tree(path)
    return tree is None or tree.is_whole(path)


def open_binary(path: Path) -> BinaryIO:
    """A file, opened for reading; of a deferred one only what is read is fetched.

    Raises:
        OSError: it cannot be opened.
        InputError: as `DeferredTree.open`.
    """
    tree = _tree(path)
    return path.open("rb") if tree is None or tree.is_whole(path) else tree.open(path)


def require_read(file: object) -> None:
    """Raise what reading a deferred file failed with, which libraries may have swallowed.

    Raises:
        OctreeNCAError: it failed.
    """
    failure = getattr(file, "failure", None)
    if failure is not None:
        raise failure


def fetch(path: Path) -> None:
    """Have a file, or all files of a folder, lie whole on the disk; at once if they do.

    Raises:
        InputError, OutputError: as `DeferredTree.fetch`.
    """
    tree = _tree(path)
    if tree is not None:
        tree.fetch(path)


def keeping(path: Path) -> AbstractContextManager[object]:
    """Context in which what is read of a file lies in its place, for libraries that look there."""
    tree = _tree(path)
    return nullcontext() if tree is None else tree.keeping(path)


def version(path: Path) -> str:
    """Size and time of a file's last change, or what a store has for these."""
    tree = _tree(path)
    if tree is not None:
        return tree.version(path)
    about = path.stat()
    return f"{about.st_size} {about.st_mtime_ns}"


def refresh(path: Path) -> None:
    """Have `version` say what is true now.

    Raises:
        InputError: as `DeferredTree.refresh`.
    """
    tree = _tree(path)
    if tree is not None:
        tree.refresh()


def _tree(path: Path) -> DeferredTree | None:
    if not _trees:
        return None
    path = path.absolute()
    known = list(_trees.items())  # other threads begin and end with theirs meanwhile
    return next((tree for folder, tree in known if path.is_relative_to(folder)), None)
