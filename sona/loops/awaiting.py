"""What a coroutine waits for, without the event loop waiting with it."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from sona._locks import lock
from sona.errors import SonaClosedError
from sona.loops.journal import Journal

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")


class Awaiting:
    """
    The two ways to wait of a coroutine that gives rewards to a journal. No call has a thread of its own: what must read the store is done
    one after the other by one thread, since calls of a store take turns anyway, and what must be durable is told by the writer's.

    Thread-safety
    -------------
    From the event loops of any threads.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._making = lock(brief=True)
        self._thread: ThreadPoolExecutor | None = None
        self._closed = False

    def would_wait(self, id: int) -> bool:
        """
        Whether a reward of that decision might have to wait now: the store has to be read, or another thread learns.

        Another thread may begin to between the answer and the reward, which then waits after all; for as long as that takes.
        """
        journal = self._journal
        policy = journal.policy
        return policy is None or not policy.knows(id) or journal.intake.locked() or journal.mutex.locked()

    async def done(self, work: Callable[[], T]) -> T:
        """
        What `work()` returns or raises in the one thread, after what came before it.

        Cancelled, it is done all the same, unless it has not begun, and then it never will be.
        """
        from asyncio import wrap_future
        from concurrent.futures import ThreadPoolExecutor

        with self._making:
            if self._closed:
                raise SonaClosedError("the router is closed")
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "sona-feedback")
            future = self._thread.submit(work)
        return await wrap_future(future)

    async def durable(self) -> None:
        """Return when everything recorded before the call is durable; raises what `Journal.flush` does. May be cancelled."""
        from asyncio import get_running_loop

        loop = get_running_loop()
        future = loop.create_future()

        def settle(error: Exception | None) -> None:
            if future.done():  # cancelled
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        def told(error: Exception | None) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, error)

        self._journal.when_durable(told)
        await future

    def close(self) -> None:
        """Nothing new is begun; what waits is done, and finds the router closed."""
        with self._making:
            self._closed = True
            if self._thread is not None:
                self._thread.shutdown(wait=False)
