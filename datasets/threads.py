"""Reading and writing by threads, while the caller computes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")


@contextmanager
def read_ahead(items: Iterable[Item]) -> Iterator[Iterator[Item]]:
    """The items, each read by a thread while the caller works with the one before it.

    ::

        with read_ahead(batches) as batches:
            for batch in batches: ...

    At the end of the block nothing is being read.
    """
    unread, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:

        def ahead() -> Iterator[Item]:
            following = thread.submit(next, unread, end)
            while (item := following.result()) is not end:
                following = thread.submit(next, unread, end)
                yield item

        yield ahead()


@contextmanager
def write_behind() -> Iterator[Callable[..., None]]:
    """Yields ``behind(function, *arguments)``, which calls the function in a thread.

    Each call waits for the one before and raises its error. The end of the block waits for the
    last call. If the block itself fails, that error is raised and the last call's is lost.
    """
    with ThreadPoolExecutor(1) as thread:
        before = thread.submit(lambda: None)

        def behind(function: Callable[..., Any], *arguments: Any) -> None:
            nonlocal before
            before.result()
            before = thread.submit(function, *arguments)

        yield behind
        before.result()
