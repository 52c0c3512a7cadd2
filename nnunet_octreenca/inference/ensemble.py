"""Several networks, seeds and mirrored copies on one image, added up band by band.

Logits of the whole image are never held: every pass gives the same band, the mean is taken, and
the labels of the band are what is left. A single pass gives labels at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.bands import Rows, aligned, split_range
from nnunet_octreenca.errors import NotFiniteError
from nnunet_octreenca.images.source import ImageSource
from nnunet_octreenca.inference.passes import Member, Pass, Shared
from nnunet_octreenca.inference.stream import (
    OctreeStream,
    Result,
    Values,
    label_dtype,
    read_ahead,
)
from nnunet_octreenca.inference.tissue import TissueMap
from nnunet_octreenca.inference.whole_image import LOGIT_BOUND, mirrorings
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.ops.finite import LOGITS_NOT_FINITE
from nnunet_octreenca.planning import Output
from nnunet_octreenca.preprocessing.restore import labels_of_logits

# Called with the stage, "read" or "segment", and how many more rows are through it.
Progress = Callable[[str, int], object]


class Ensemble:
    """Networks whose logits are averaged, each over all mirrored copies, band by band.

    Of several copies, each one's logits are averaged within `whole_image.LOGIT_BOUND`.

    `segment` gives labels and `logits` gives logits. Neither needs the whole image in memory, and
    the result is that of whole images, whatever the height of the bands.

    Args:
        members: at least one network, or pairs of a network and the seed of its fire draws; all
            of the same channels, classes and dimension. A network alone draws with its own `seed`.
        mirror_axes: spatial axes of the networks to mirror, 0 for y (2-D) or z (3-D); all sets of
            them are averaged. None or empty for none.
        band_rows: rows (2-D) or planes (3-D) of a band, rounded up to whole nodes of the
            coarsest level.
        state: "float32", or "float16" for states in half the memory, which changes some labels;
            None for what the environment variable OCTREENCA_STATE says.

    Attributes:
        passes: how often the image is segmented, members times mirrored copies.

    Raises:
        ValueError: no members, or `band_rows` below 1.

    Examples:
        >>> import numpy as np
        >>> from nnunet_octreenca import ArraySource, Ensemble, OctreeNCA
        >>> network = OctreeNCA(3, 2, dimension=2, factors=[[2, 2]] * 2, steps=[4, 4, 8])
        >>> ensemble = Ensemble([(network, 0), (network, 1)], band_rows=16)
        >>> image = ArraySource(np.ones((3, 40, 24), np.float32))
        >>> [(first, labels.shape) for first, labels in ensemble.segment(image)][:2]
        [(0, (16, 24)), (16, (16, 24))]
    """

    def __init__(
        self,
        members: Sequence[OctreeNCA | tuple[OctreeNCA, int]],
        *,
        mirror_axes: Sequence[int] | None = None,
        band_rows: int = 256,
        state: str | None = None,
    ) -> None:
        if not members or band_rows < 1:
            raise ValueError(f"{len(members)} members, bands of {band_rows} rows: give 1 or more")
        self.members = tuple(
            Member(one, one.seed) if isinstance(one, OctreeNCA) else Member(*one) for one in members
        )
        self.mirrorings = mirrorings(mirror_axes)
        self.band_rows = band_rows
        self.state = state

    @property
    def passes(self) -> int:
        """How often the image is segmented."""
        return len(self.members) * len(self.mirrorings)

    def coarse(
        self, image: ImageSource, output: Output, *, progress: Progress | None = None
    ) -> list[NDArray[np.uint8]]:
        """The coarsest level of every pass, for `rows` of the same ensemble, wherever that runs.

        Args:
            image: as for `segment`; read once.
            output: that `rows` will give.
            progress: as for `segment`.

        Raises:
            InputError: what the image raises.
            NotFiniteError: a state became NaN or infinite.
        """
        passes, shared = self._passes(image, output)
        self._prepare(passes, shared, image.shape[0], None, progress or _silent)
        return [part.stream.save() for part in passes]

    def rows(
        self,
        image: ImageSource,
        wanted: Rows,
        coarse: Sequence[NDArray[np.uint8]],
        output: Output,
        *,
        progress: Progress | None = None,
    ) -> Iterator[Result]:
        """Labels or mean logits of some rows, the same as of the whole image.

        Args:
            image: as for `segment`; what the rows depend on is read.
            wanted: rows of the image.
            coarse: of `coarse`.
            output: labels or logits.
            progress: as for `segment`.

        Yields:
            (first row, labels or logits) as `segment` and `logits` do.

        Raises:
            InputError: what the image raises.
            NotFiniteError: the state or the logits became NaN or infinite.
            ValueError: the coarsest level is of another image or engine.
        """
        passes, shared = self._passes(image, output)
        try:
            for part, saved in zip(passes, coarse, strict=True):
                part.stream.restore(saved)
            band_rows = aligned(self.band_rows, passes[0].stream.factor)
            for first, values in self._results(passes, wanted, shared, band_rows, output):
                yield first, values
                (progress or _silent)("segment", values.shape[0 if output is Output.LABELS else 1])
        finally:
            for part in passes:
                part.close()

    def segment(
        self,
        image: ImageSource,
        *,
        progress: Progress | None = None,
        tissue: bool = False,
    ) -> Iterator[Result]:
        """Labels of an image as the networks take it.

        Args:
            image: normalized, float32, (channels, y, x) or (channels, z, y, x).
            progress: called with "read" or "segment" and how many more rows are through it.
            tissue: leave out bands without tissue (inference.tissue), which get label 0. What is
                computed is as without.

        Yields:
            (first row, labels), in order and without gaps; labels are (rows, *axes), uint8, or
            int16 above 255 classes.

        Raises:
            InputError: what the image raises.
            NotFiniteError: the state or the logits became NaN or infinite.
        """
        return self._open(image, progress or _silent, tissue, Output.LABELS)

    def logits(
        self,
        image: ImageSource,
        *,
        progress: Progress | None = None,
        tissue: bool = False,
    ) -> Iterator[Result]:
        """Mean logits of an image as the networks take it.

        Args:
            image: as for `segment`.
            progress: as for `segment`.
            tissue: leave out bands without tissue, which get logits in favour of label 0.

        Yields:
            (first row, logits), in order and without gaps; logits are (num_classes, rows, *axes),
            float32.

        Raises:
            InputError: what the image raises.
            NotFiniteError: the state or the logits became NaN or infinite.
        """
        return self._open(image, progress or _silent, tissue, Output.LOGITS)

    def logits_of_members(
        self,
        image: ImageSource,
        *,
        progress: Progress | None = None,
        tissue: bool = False,
    ) -> Iterator[Result]:
        """Logits of every member by itself, each the sum of its mirrored copies.

        Added up in order and divided by `passes`, these are the bits of `logits`.

        Args:
            image: as for `segment`.
            progress: as for `segment`.
            tissue: as for `logits`.

        Yields:
            (first row, logits), in order and without gaps; (members, num_classes, rows, *axes)
            float32.

        Raises:
            InputError: what the image raises.
            NotFiniteError: the state or the logits became NaN or infinite.
        """
        return self._open(image, progress or _silent, tissue, Output.LOGITS, separate=True)

    def _open(
        self,
        image: ImageSource,
        progress: Progress,
        tissue: bool,
        output: Output,
        separate: bool = False,
    ) -> Iterator[Result]:
        passes, shared = self._passes(image, output)
        try:
            yield from self._run(image, passes, shared, output, progress, tissue, separate)
        finally:
            for part in passes:
                part.close()

    def _passes(self, image: ImageSource, output: Output) -> tuple[list[Pass], Shared]:
        """Every member on every mirrored copy, and what they read."""
        # A mean is taken of logits, whatever is made of it.
        each = output if self.passes == 1 else Output.LOGITS
        shared = Shared(image.read, 1 if each is Output.LABELS else 3 * len(self.mirrorings))
        passes = [
            Pass(member, axes, image, shared, self.state, each)
            for member in self.members
            for axes in self.mirrorings
        ]
        return passes, shared

    def _prepare(
        self,
        passes: list[Pass],
        shared: Shared,
        end: int,
        seen: TissueMap | None,
        progress: Progress,
    ) -> None:
        """The coarsest level of every pass."""
        band_rows = aligned(self.band_rows, passes[0].stream.factor)
        self._pool(passes, split_range(0, end, band_rows), seen, progress)
        shared.clear()
        for part in passes:
            part.stream.prepare()

    def _run(
        self,
        image: ImageSource,
        passes: list[Pass],
        shared: Shared,
        output: Output,
        progress: Progress,
        tissue: bool,
        separate: bool,
    ) -> Iterator[Result]:
        end = image.shape[0]
        band_rows = aligned(self.band_rows, passes[0].stream.factor)
        seen = TissueMap(passes[0].stream.factor) if tissue else None
        self._prepare(passes, shared, end, seen, progress)
        wanted = seen.ranges(split_range(0, end, band_rows)) if seen else [Rows(0, end)]
        done = 0
        for stretch in [*wanted, Rows(end, end)]:
            if stretch.first > done:  # nothing but glass
                glass = self._background(passes[0].stream, stretch.first - done, output)
                if separate:
                    copies = np.float32(len(self.mirrorings))
                    glass = np.stack([copies * glass] * len(self.members))
                yield done, glass
                progress("segment", stretch.first - done)
            if stretch.first == end:
                return
            if separate:
                results = self._members(passes, stretch, band_rows)
            else:
                results = self._results(passes, stretch, shared, band_rows, output)
            rows = 2 if separate else 0 if output is Output.LABELS else 1
            for first, values in results:
                yield first, values
                progress("segment", values.shape[rows])
            done = stretch.end

    def _pool(
        self,
        passes: list[Pass],
        ranges: list[Rows],
        seen: TissueMap | None,
        progress: Progress,
    ) -> None:
        # Copies mirrored along the other axes are made of the same bands.
        for reverse in (False, True):
            group = [part for part in passes if (0 in part.axes) == reverse]
            if not group:
                continue
            for band, rows in read_ahead(ranges, group[0].read):
                for part in group:
                    same = part.axes == group[0].axes
                    part.stream.pool(rows if same else part.read(*band), band.first)
                if seen is not None and not reverse:
                    seen.add(rows)
                progress("read", band.end - band.first)

    def _results(
        self,
        passes: list[Pass],
        stretch: Rows,
        shared: Shared,
        band_rows: int,
        output: Output,
    ) -> Iterator[Result]:
        if passes[0].stream.output is Output.LABELS:
            return passes[0].stream.run(stretch, shared, band_rows)
        return self._means(passes, stretch, band_rows, output)

    def _means(
        self, passes: list[Pass], stretch: Rows, band_rows: int, output: Output
    ) -> Iterator[Result]:
        for band in split_range(*stretch, band_rows):
            total = self._sum(self._of_members(passes, band, stretch, band_rows))
            total /= len(passes)
            if not np.isfinite(total).all():
                raise NotFiniteError(LOGITS_NOT_FINITE)
            if output is Output.LABELS:
                total = labels_of_logits(total, None, label_dtype(len(total)))
            yield band.first, total

    def _members(self, passes: list[Pass], stretch: Rows, band_rows: int) -> Iterator[Result]:
        for band in split_range(*stretch, band_rows):
            values = np.stack(list(self._of_members(passes, band, stretch, band_rows)))
            if not np.isfinite(values).all():
                raise NotFiniteError(LOGITS_NOT_FINITE)
            yield band.first, values

    def _of_members(
        self, passes: list[Pass], band: Rows, stretch: Rows, band_rows: int
    ) -> Iterator[Values]:
        """The sum of each member's mirrored copies."""
        for group in _by_member(passes, len(self.mirrorings)):
            yield self._sum(self._bounded(part.take(band, stretch, band_rows)) for part in group)

    def _bounded(self, logits: Values) -> Values:
        """A copy's part of the mean."""
        if len(self.mirrorings) == 1:
            return logits
        if not np.isfinite(logits).all():
            raise NotFiniteError(LOGITS_NOT_FINITE)
        return np.clip(logits, -LOGIT_BOUND, LOGIT_BOUND)

    @staticmethod
    def _sum(parts: Iterable[Values]) -> Values:
        total: Values | None = None
        for part in parts:
            if total is None:
                total = part
            else:
                total += part
        assert total is not None
        return total

    def _background(self, stream: OctreeStream, rows: int, output: Output) -> Values:
        shape = (rows, *stream.shape[1:])
        heads = stream.network.num_classes
        if output is Output.LABELS:
            return np.zeros(shape, label_dtype(heads))
        values = np.full((heads, *shape), -1.0, np.float32)
        if stream.network.constant_background:
            values[0] = 0
        return values


def _by_member(passes: Sequence[Pass], count: int) -> Iterator[Sequence[Pass]]:
    """The passes of each member: copies are added up first, then members, in nnU-Net's order."""
    for first in range(0, len(passes), count):
        yield passes[first : first + count]


def _silent(stage: str, rows: int) -> None:
    pass
