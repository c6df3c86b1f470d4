"""`BackgroundSave`: one save at a time in a thread, and no failure unheard."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundSave:
    """Runs saves in a thread, at most one at a time.

    What must not happen before a save has succeeded, such as deleting the checkpoint before it,
    waits for it with `after`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running = False
        self._afterwards: list[Callable[[], None]] = []
        self._failure: BaseException | None = None

    def __reduce__(self) -> tuple[type[BackgroundSave], tuple[()]]:
        """A copy, in another process say, has no save under way; this one keeps its own."""
        return BackgroundSave, ()

    def start(self, save: Callable[[], None], name: str) -> None:
        """Wait for the save before, then begin this one.

        Raises:
            Exception: What the save before raised, if it failed.
        """
        self.wait()
        self._running = True
        self._thread = threading.Thread(target=self._run, args=(save,), name=f"save {name}")
        self._thread.start()

    def after(self, action: Callable[[], None]) -> None:
        """Act now, or, where a save is under way, once it has succeeded; never if it fails."""
        with self._lock:
            if self._running:
                self._afterwards.append(action)
                return
        action()

    def wait(self) -> None:
        """Wait for the save under way, and for what was to happen after it.

        Raises:
            Exception: What either of them raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise the error of a save that has ended, once; costs nothing when there is none."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _run(self, save: Callable[[], None]) -> None:
        action = save
        try:
            while True:
                action()
                with self._lock:
                    if not self._afterwards:
                        self._running = False
                        return
                    action = self._afterwards.pop(0)
        except BaseException as error:
            with self._lock:
                self._failure, self._running = error, False
                self._afterwards.clear()
