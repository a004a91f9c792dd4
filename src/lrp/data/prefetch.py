"""Reads in threads: while one batch is processed, the next ones are being decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


def read_ahead(
    batches: Iterable[tuple[int, Sequence[Item]]], read: Callable[[Item], Any], workers: int
) -> Iterator[tuple[int, Sequence[Item], list[Any]]]:
    """The numbered batches with the result of `read` for each item, in order; two batches are read ahead."""
    waiting: deque[tuple[int, Sequence[Item], list[Future[Any]]]] = deque()
    pool = ThreadPoolExecutor(workers, "lrp-decode")
    try:
        for unit, batch in batches:
            waiting.append((unit, batch, [pool.submit(read, item) for item in batch]))
            if len(waiting) > 2:
                yield _done(waiting.popleft())
        while waiting:
            yield _done(waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _done(item: tuple[int, Sequence[Item], list[Future[Any]]]) -> tuple[int, Sequence[Item], list[Any]]:
    unit, batch, futures = item
    return unit, batch, [future.result() for future in futures]
