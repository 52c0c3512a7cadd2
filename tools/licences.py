"""List the licences of everything that the package installs, as a page of the documentation.

    pip install ".[all]"
    python tools/licences.py                  print the page
    python tools/licences.py --write          write it to docs/reference/licences.md
    python tools/licences.py --json           the list alone

Licences are what the installed packages' metadata say: the SPDX expression, else the licence
field, else the trove classifiers. What wheels bundle and no metadata mention (FFmpeg in PyAV,
GCC's runtime in numpy) is found by the names of the bundled libraries.

Exit code: 0, or 1 if a dependency of this platform is not installed.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "licences.md"
MODELS = ROOT / "nnunet_octreenca" / "zoo" / "index.json"
# What the wheel contains beside the models, and SPDX identifiers.
CONTENTS = (
    ("nnunet_octreenca", "Apache-2.0"),
    ("[NiiVue](https://github.com/niivue/niivue) 0.69.0, in reports", "BSD-2-Clause"),
    ("[pybind11](https://github.com/pybind/pybind11), in the native modules", "BSD-3-Clause"),
    ("LLVM's libc++, in the engine for web pages", "Apache-2.0 WITH LLVM-exception"),
    ("[wasi-libc](https://github.com/WebAssembly/wasi-libc), in the engine for web pages", "MIT"),
    ("cloudlibc, in wasi-libc", "BSD-2-Clause"),
)
PACKAGE, EXTRAS = "nnunet-octreenca", ("slides", "video", "dicom", "onnx")
# Networks to compare with: large, and in no installation that is distributed.
UNLISTED = ("baselines",)
COPYLEFT = re.compile(r"\b(A?L?GPL|GNU|MPL|Mozilla|EUPL|CeCILL)", re.I)
PROPRIETARY = re.compile(r"proprietary", re.I)
NONE = "not stated"

# Copyleft libraries inside wheels, by the beginning of their file names.
BUNDLED = {
    "libavcodec": "FFmpeg: LGPL-3.0-or-later as built for PyAV",
    "libx264": "x264: GPL-2.0-or-later",
    "libx265": "x265: GPL-2.0-or-later",
    "libasound": "ALSA: LGPL-2.1-or-later",
    "libgnutls": "GnuTLS: LGPL-2.1-or-later",
    "libgmp": "GMP: LGPL-3.0-or-later or GPL-2.0-or-later",
    "libnettle": "Nettle: LGPL-3.0-or-later or GPL-2.0-or-later",
    "libunistring": "libunistring: LGPL-3.0-or-later or GPL-2.0-or-later",
    "libopenslide": "OpenSlide: LGPL-2.1-only",
    "libheif": "libheif: LGPL-3.0-or-later",
    "libtcc": "TinyCC: LGPL-2.1-or-later",
    "libmp3lame": "LAME: LGPL-2.0-or-later",
    "libgeos": "GEOS: LGPL-2.1-only",
    "libgfortran": "GCC's runtime: GPL-3.0 with the runtime library exception",
    "libquadmath": "libquadmath: LGPL-2.1-or-later",
    "libgomp": "GCC's runtime: GPL-3.0 with the runtime library exception",
}
# Long texts in the licence field, by a line that only they have.
TEXTS = (
    (r"Apache License\s+Version 2\.0", "Apache-2.0"),
    (r"matplotlib versions", "matplotlib's own, BSD-compatible"),
    (r"Redistributions? (of|in)", "BSD"),
    (r"Permission is hereby granted, free of charge", "MIT"),
)


@dataclass(frozen=True)
class Part:
    """One installed package.

    Attributes:
        name: as the registry spells it.
        version: installed.
        licence: as its metadata state it.
        direct: whether pyproject.toml names it.
        extras: the extras that bring it; empty if the base installation does.
        bundled: copyleft libraries inside its files.
    """

    name: str
    version: str
    licence: str
    direct: bool
    extras: tuple[str, ...]
    bundled: tuple[str, ...]


def licence_of(dist: Distribution) -> str:
    """What a package's metadata say its licence is, in one line."""
    metadata = dist.metadata
    expression = (metadata.get("License-Expression") or "").strip()
    if expression:
        return expression
    text = (metadata.get("License") or "").strip()
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License ::") and line != "License :: OSI Approved"
    ]
    if text and "\n" not in text and len(text) < 80 and text.upper() != "UNKNOWN":
        return text
    if classifiers:
        return ", ".join(classifiers)
    return next((name for pattern, name in TEXTS if re.search(pattern, text)), NONE)


def bundled_in(dist: Distribution) -> tuple[str, ...]:
    """Copyleft libraries among a package's files."""
    names = {Path(str(file)).name for file in dist.files or []}
    libraries = [name for name in names if re.search(r"\.(so|dylib|dll)\b", name)]
    return tuple(
        sorted({what for start, what in BUNDLED.items() for n in libraries if n.startswith(start)})
    )


def requirements(dist: Distribution, extras: Sequence[str]) -> Iterator[Requirement]:
    """What a package with some extras requires on this platform."""
    for line in dist.requires or []:
        requirement = Requirement(line)
        chosen = extras or ("",)
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in chosen
        ):
            yield requirement


def closure(name: str, extras: Sequence[str]) -> tuple[set[str], list[str]]:
    """Names of all that a package with extras brings, itself left out, and what is missing."""
    found: dict[str, set[str]] = {}
    missing: list[str] = []
    todo = [(name, tuple(extras))]
    while todo:
        current, chosen = todo.pop()
        key = canonicalize_name(current)
        new = {"", *chosen} - found.get(key, set())
        if not new:
            continue
        found.setdefault(key, set()).update(new)
        try:
            dist = distribution(current)
        except PackageNotFoundError:
            missing.append(current)
            continue
        for requirement in requirements(dist, tuple(new)):
            todo.append((requirement.name, tuple(requirement.extras)))
    return set(found) - {canonicalize_name(name)} - set(missing), sorted(missing)


def direct_names(extras: Sequence[str]) -> set[str]:
    """The packages that pyproject.toml requires, with those of some extras."""
    return {canonicalize_name(r.name) for r in requirements(distribution(PACKAGE), extras)}


def parts() -> tuple[list[Part], list[str]]:
    """Everything the package and its extras install, by name, and what is missing here."""
    base, missing = closure(PACKAGE, ())
    by_extra = {}
    for extra in EXTRAS:
        by_extra[extra], more = closure(PACKAGE, (extra,))
        missing += more
    direct = direct_names(("", *EXTRAS))
    listed = []
    for name in sorted(base.union(*by_extra.values())):
        dist = distribution(name)
        extras = () if name in base else tuple(e for e in EXTRAS if name in by_extra[e])
        listed.append(
            Part(dist.metadata["Name"], dist.version, licence_of(dist), name in direct, extras,
                 bundled_in(dist))
        )  # fmt: skip
    return listed, sorted(set(missing))


def _row(part: Part) -> str:
    where = "base" if not part.extras else ", ".join(f"`[{extra}]`" for extra in part.extras)
    bundled = f"; bundles {'; '.join(part.bundled)}" if part.bundled else ""
    return f"| {part.name} | {part.version} | {where} | {part.licence}{bundled} |"


def _table(listed: Sequence[Part]) -> list[str]:
    return ["| package | version | installed by | licence |", "|---|---|---|---|",
            *(_row(part) for part in listed)]  # fmt: skip


def contents() -> list[str]:
    """What the wheel contains, as a table."""
    models = json.loads(MODELS.read_text(encoding="utf-8"))["models"]
    rows = [*CONTENTS, *((f"model `zoo:{name}`", one["licence"]) for name, one in models.items())]
    return [
        "| part | licence |",
        "|---|---|",
        *(f"| {part} | {licence} |" for part, licence in rows),
    ]


def page(listed: Sequence[Part]) -> str:
    """The page of the documentation."""
    copyleft = [p for p in listed if COPYLEFT.search(p.licence) or p.bundled]
    proprietary = [p for p in listed if PROPRIETARY.search(p.licence)]
    unstated = [part for part in listed if part.licence == NONE]
    rest = [part for part in listed if part not in [*copyleft, *proprietary, *unstated]]
    lines = [
        "# Licences",
        "",
        "nnunet_octreenca itself is [Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0). "
        "This page lists what its installation brings: the direct dependencies and all that they "
        "require in turn, on Linux with the extras `[slides,video,dicom,onnx]`; not what "
        "`[baselines]` adds, segmentation-models-pytorch (MIT), MONAI (Apache-2.0) and what they "
        "require. It repeats the packages' own metadata and is not legal advice. "
        "`python tools/licences.py --write` writes it for the versions installed; `--json` prints "
        "the list for other tools. Each release also carries a CycloneDX list (`sbom.cdx.json`).",
        "",
        "## Inside the wheel",
        "",
        "The wheel's metadata name all of these licences, and its folder of licences holds their "
        "notices and the models' cards, with the terms and citations of their data.",
        "",
        *contents(),
        "",
        "Nothing below is part of the wheel: `pip` installs each package from its publisher. "
        "Obligations of the LGPL and GPL arise for whoever redistributes them, for example inside "
        "a container image.",
        "",
        "## Copyleft parts",
        "",
        "Packages under the LGPL, GPL or MPL, and packages under other licences whose wheels "
        "bundle such a library:",
        "",
        *_table(copyleft),
        "",
        "- **connected-components-3d** is imported by nnU-Net (through acvl-utils), not by this "
        "package.",
        "- **OpenSlide** is loaded for vendors' slide formats only; without `[slides]` it is not "
        "installed.",
        "- **PyAV** bundles an FFmpeg that reports LGPL version 3 or later, together with the "
        "encoders x264 and x265, which are under the GPL. Without `[video]` it is not installed.",
        "- **GCC's runtime** in numpy, scipy and others may be used by programs under any licence "
        "(GCC runtime library exception).",
        "",
        "## NVIDIA's libraries",
        "",
        "PyTorch's Linux wheels from PyPI require NVIDIA's CUDA libraries, which are under "
        "NVIDIA's own licence. PyTorch's CPU wheels do not.",
        "",
        *_table(proprietary),
        "",
        *(
            ["## Without a licence in their metadata", "", *_table(unstated), ""]
            if unstated
            else []
        ),
        "## All others",
        "",
        *_table(rest),
        "",
    ]
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Print or write the list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(given)
    listed, missing = parts()
    if args.json:
        print(json.dumps([asdict(part) for part in listed], indent=1))
    elif args.write:
        PAGE.write_text(page(listed), encoding="utf-8")
    else:
        print(page(listed), end="")
    for name in missing:
        print(f"{name} is required and not installed: run pip install '.[all]'", file=sys.stderr)
    unstated = [part.name for part in listed if part.licence == NONE]
    for name in unstated:
        print(f"{name} states no licence in its metadata", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
