"""Text of a running generation: whole characters only, stop strings found and held back."""

from __future__ import annotations

import codecs


class TextStream:
    """Collects token pieces and releases what can no longer become part of a stop string."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.text = ""
        self.stopped = False
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._released = 0

    def push(self, piece: bytes) -> None:
        """Append one token's bytes; sets ``stopped`` and cuts the text when a stop string is complete."""
        self._append(self._decoder.decode(piece))

    def finish(self) -> None:
        """No more bytes come: an incomplete character becomes U+FFFD."""
        if not self.stopped:
            self._append(self._decoder.decode(b"", final=True))

    def _append(self, new: str) -> None:
        if not new or self.stopped:
            return
        if not self._stop:
            self.text += new
            return
        # A stop string can start in what came before, by at most its length less one.
        begin = max(0, len(self.text) - max((len(word) for word in self._stop), default=1) + 1)
        self.text += new
        found = [place for word in self._stop if (place := self.text.find(word, begin)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True

    def release(self, *, final: bool = False) -> str:
        """Text that was not released yet and is safe to show; everything when ``final`` or stopped."""
        end = len(self.text)
        if not (final or self.stopped):
            end -= self._held()
        new = self.text[self._released : end]
        self._released = max(self._released, end)
        return new

    def _held(self) -> int:
        """Length of the longest tail that is the beginning of a stop string."""
        longest = 0
        for word in self._stop:
            for length in range(min(len(word) - 1, len(self.text)), longest, -1):
                if self.text.endswith(word[:length]):
                    longest = length
                    break
        return longest
