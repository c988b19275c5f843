"""The answer to a turn in a pool: an iterator over what the pool's thread makes."""

from __future__ import annotations

from collections.abc import Callable, Generator

from ..chat.answer import Answer, AnswerStream, Piece
from .mailbox import Mailbox


class End:
    """The end of an answer.

    Attributes
    ----------
    error : BaseException or None
        What has ended it, if it has not ended by itself or been stopped.
    """

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class PoolAnswerStream(AnswerStream):
    """The answer to one turn in a pool: an iterator over its pieces, which are made whether they are read or not.

    `async for` reads it as well. Its attributes are those of `answer`. When it has ended, the turn is saved. To close
    it, to leave the loop that reads it and drop it, or to cancel the task that does, stops the answer.

    Attributes
    ----------
    answer : Answer
        What is known of the answer so far.
    """

    def __init__(self, mail: Mailbox[Piece | End], stop: Callable[[], None], answer: Answer) -> None:
        self._mail, self._has_ended = mail, False
        super().__init__(_nothing(), stop, answer)  # this class reads its mail instead

    def close(self) -> None:
        """Stop the answer. What has been said stays in the conversation."""
        self._has_ended = True
        self._stop()

    def __del__(self) -> None:
        if not getattr(self, "_has_ended", True):
            self._stop()

    def __next__(self) -> Piece:
        if self._has_ended:
            raise StopIteration
        return self._opened(self._mail.get(), StopIteration)

    async def __anext__(self) -> Piece:
        if self._has_ended:
            raise StopAsyncIteration
        try:
            item = await self._mail.aget()
        except BaseException:  # the task is cancelled
            self.close()
            raise
        return self._opened(item, StopAsyncIteration)

    def _opened(self, item: Piece | End, end: type[Exception]) -> Piece:
        """Return a piece; at the end of the answer raise what has ended it."""
        if isinstance(item, Piece):
            return item
        self._has_ended = True
        raise end if item.error is None else item.error


def _nothing() -> Generator[Piece, None, None]:
    yield from ()
