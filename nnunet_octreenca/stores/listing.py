"""The cases that a URL leads to, and their files in places on this machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.cases import CHANNEL, Case, case_stem, list_cases
from nnunet_octreenca.images.open_image import kind_of
from nnunet_octreenca.result_record import RECORDS
from nnunet_octreenca.stores.scratch import Scratch
from nnunet_octreenca.stores.staged import StagedFiles, staged
from nnunet_octreenca.stores.store import Entry, Store, store_of
from nnunet_octreenca.stores.urls import last_name

# Which name their other files within; they may have any name.
_HEADERS = (".mhd", ".nhdr", ".vms", ".vmu")


@dataclass(frozen=True)
class StoredCase(Case):
    """A case whose files lie in a store; `files` are their names only.

    Attributes:
        store: that they are in.
        paths: of the files there.
    """

    store: Store
    paths: tuple[str, ...]

    def file_names(self) -> list[str]:
        """The URLs of the files, without secrets."""
        return [self.store.named(path) for path in self.paths]


def stored_cases(
    url: str,
    channels: int,
    scratch: Scratch,
    *,
    frames: bool = False,
    output: str | None = None,
    tell: Callable[[str], object] | None = None,
) -> list[StoredCase]:
    """The cases of a URL, a file's or a folder's, as `list_cases` finds them on a disk.

    Args:
        url: of the file or folder.
        channels: that the model takes.
        scratch: where names, and what decides the kind of a file, lie meanwhile.
        frames: see `list_cases`.
        output: URL of the results, which may be `url` or lie below it.
        tell: takes a line about what a folder holds and what is left out.

    Raises:
        InputError: nothing is there, or as `list_cases`.
        EnvironmentMismatchError: what reaches the store is not installed.
    """
    store = store_of(url)
    root = store.root
    found = store.info(root)
    name = last_name(root) or last_name(url) or "images"
    if found is not None and not found.is_folder and not _may_be_page(url, name):
        entries = _file_entries(store, found, name, channels)
    else:
        entries = list(_folder_entries(store, root, name))
        if not entries and found is not None and not found.is_folder:
            entries = _file_entries(store, found, name, channels)
        if not entries:
            raise InputError(
                f"{store.shown} does not exist or is empty; check bucket, path and spelling"
            )
    with staged(store, entries, scratch, name) as files:
        top = files.folder / name
        if top.is_dir():
            files.fetch_all((top / RECORDS).glob("*.json"))

        def said(line: str) -> None:
            if tell is not None:
                tell(files.shown(line))

        try:
            cases = list_cases(
                top, channels, frames=frames, output=_below(top, url, output), tell=said
            )
        except InputError as error:
            raise InputError(files.shown(str(error))) from None
        stored = []
        for case in cases:
            paths = [root if file == top else _entry(files, file).path for file in case.files]
            names = tuple(Path(file.name) for file in case.files)
            stored.append(StoredCase(case.name, names, store, tuple(paths)))
    return stored


def _entry(files: StagedFiles, file: Path) -> Entry:
    entry = files.entry_of(file)
    assert entry is not None  # nobody else writes there
    return entry


def _may_be_page(url: str, name: str) -> bool:
    """Whether what HTTP calls a file is the page that lists a folder."""
    http = url.lower().startswith(("http://", "https://"))
    return http and (url.endswith("/") or kind_of(Path(name)) in (None, "OME-Zarr folder"))


def _file_entries(store: Store, found: Entry, name: str, channels: int) -> list[Entry]:
    """A file, and what may belong to it: other channels."""
    entries = [replace(found, name=name)]
    stem = case_stem(name)
    match = CHANNEL.fullmatch(stem)
    if match is not None and match[2] == "0000":
        ending = name[len(stem) :]
        for channel in range(1, channels):
            other = f"{match[1]}_{channel:04d}{ending}"
            beside = _beside(store, found.path, other)
            if beside is not None:
                entries.append(beside)
    return entries


def _beside(store: Store, path: str, name: str) -> Entry | None:
    """Another file of a file's folder, if there is one."""
    place = store.beside(path, name)
    found = None if place is None else store.info(place, optional=True)
    return None if found is None or found.is_folder else replace(found, name=name)


def _folder_entries(store: Store, root: str, name: str) -> Iterator[Entry]:
    """What is in a folder and in its folders, which decides what the folder is."""
    for entry in store.inside(root):
        yield replace(entry, name=f"{name}/{entry.name}")
        if entry.is_folder:
            for inner in store.inside(entry.path):
                if not inner.is_folder:
                    yield replace(inner, name=f"{name}/{entry.name}/{inner.name}")


def _below(top: Path, url: str, output: str | None) -> Path | None:
    """The place of the folder for the results, where that is in the folder of the images."""
    here, there = url.rstrip("/"), (output or "").rstrip("/")
    if there == here:
        return top
    return top / there[len(here) + 1 :] if there.startswith(f"{here}/") else None


@contextmanager
def local_case(case: StoredCase, scratch: Scratch) -> Iterator[tuple[Case, StagedFiles]]:
    """Context in which a case's files have places on this machine; removed at its end.

    Raises:
        InputError: a file is no longer there.
    """
    store = case.store
    entries: list[Entry] = []
    for name, path in zip(case.files, case.paths, strict=True):
        entries += _case_entries(store, str(name), path)
    top = str(case.files[0]) if case.paths[0] == store.root else ""
    with staged(store, entries, scratch, top) as files:
        yield Case(case.name, tuple(files.folder / name for name in case.files)), files


def _case_entries(store: Store, name: str, path: str) -> list[Entry]:
    """A file or folder with all that is read with it."""
    found = store.info(path)
    below = [] if found is not None and not _listed(found, name) else store.walk(path)
    if found is None and not below:
        raise InputError(f"{store.named(path)} does not exist; check bucket, path and spelling")
    if below:
        return [replace(_known(store, entry), name=f"{name}/{entry.name}") for entry in below]
    assert found is not None
    entries = [replace(found, name=name)]
    folder, _, own = path.rpartition("/")
    ending = Path(name).suffix.lower()
    if ending in _HEADERS:
        beside = [entry for entry in store.inside(folder) if not entry.is_folder]
        entries += [_known(store, entry) for entry in beside if entry.name != name]
    elif ending == ".mrxs":
        stem = name[: -len(ending)]
        inner = store.walk(f"{folder}/{own[: -len(ending)]}" if folder else own[: -len(ending)])
        entries += [replace(_known(store, e), name=f"{stem}/{e.name}") for e in inner]
    elif kind_of(Path(name)) == "TIFF":  # nnU-Net puts the spacing of stacks there
        spacing = _beside(store, path, f"{Path(name).stem.removesuffix('_0000')}.json")
        entries += [] if spacing is None else [spacing]
    return entries


def _listed(found: Entry, name: str) -> bool:
    return found.is_folder or kind_of(Path(name)) == "OME-Zarr folder"


def _known(store: Store, entry: Entry) -> Entry:
    """An entry with what a listing may leave out: HTTP's pages name files only."""
    if entry.size is not None:
        return entry
    found = store.info(entry.path)
    return entry if found is None else replace(found, name=entry.name)
