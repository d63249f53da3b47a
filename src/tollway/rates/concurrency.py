"""How many requests of each account are running."""


class Concurrency:
    def __init__(self) -> None:
        self._running: dict[str, int] = {}

    def enter(self, key: str, limit: int) -> bool:
        running = self._running.get(key, 0)
        if running >= limit:
            return False
        self._running[key] = running + 1
        return True

    def leave(self, key: str) -> None:
        left = self._running[key] - 1
        if left:
            self._running[key] = left
        else:
            del self._running[key]

    def running(self, key: str) -> int:
        return self._running.get(key, 0)
