"""Opens images for a test and closes them after it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def closed_afterwards(function: Callable) -> Iterator[Callable]:
    """`function`, which opens something, so that all it opened is closed at the end."""
    with ExitStack() as stack:

        def opened(*args, **options):
            source = function(*args, **options)
            stack.callback(source.close)
            return source

        yield opened
