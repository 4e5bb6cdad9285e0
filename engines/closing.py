"""Context managers that release what they own in `close`."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class ClosesOnExit:
    """A context manager whose `with` block ends with `close`; the subclass defines `close`."""

    def close(self) -> None:
        """Release everything; closing twice is allowed."""
        raise TypeError(f"{type(self).__name__} must define close")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
