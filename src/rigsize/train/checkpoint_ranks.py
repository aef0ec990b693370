"""All ranks together: what one rank meets, all of them learn, so that none waits for ever."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from rigsize.errors import MeasurementFailed, SizingError

__all__ = ["Ranks"]

T = TypeVar("T")

_ANSWERS = (SizingError, OSError, CheckpointException)


class Ranks:
    """The ranks of the default process group, or this one process alone."""

    def __init__(self) -> None:
        self.many = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if self.many else 0
        self.size: int = dist.get_world_size() if self.many else 1

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank, in the order of the ranks."""
        if not self.many:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def everywhere(self, call: Callable[[], T]) -> list[T]:
        """Runs ``call`` on each rank; an error on one is raised on all of them.

        Raises:
            SizingError: the error of the lowest rank that met one, in the user's words.
        """
        result: T | None = None
        cause: BaseException | None = None
        try:
            result = call()
        # CheckpointException derives from BaseException: `except Exception` misses it.
        except (Exception, CheckpointException) as error:
            cause = error
        outcomes = self.gather((None if cause is None else _explained(cause), result))
        if cause is not None and not isinstance(cause, _ANSWERS):
            raise cause  # a mistake of ours keeps its traceback; the others learn of it below
        for problem, _ in outcomes:
            if problem is not None:
                raise problem from cause
        return [result for _, result in outcomes]  # type: ignore[misc]  # none failed

    def lead(self, call: Callable[[], T]) -> T:
        """Runs ``call`` on rank 0 only; its result, or its error, is everybody's."""
        return cast(T, self.everywhere(call if self.rank == 0 else _nothing)[0])


def _nothing() -> Any:
    return None


def _explained(error: BaseException) -> SizingError:
    """The error as one line; DCP wraps the true one of each rank."""
    if isinstance(error, CheckpointException) and error.failures:
        return _explained(next(iter(error.failures.values()))[0])
    if isinstance(error, SizingError):
        return error
    if isinstance(error, OSError):
        return _explained_os(error)
    return MeasurementFailed("checkpoint", type(error).__name__, str(error))


def _explained_os(error: OSError) -> MeasurementFailed:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    problem = "no space left on the disk" if full else error.strerror or type(error).__name__
    hint = "free some space, then --resume: checkpoints that were whole still are" if full else ""
    return MeasurementFailed("checkpoint", error.filename or "a file of it", problem, hint=hint)
