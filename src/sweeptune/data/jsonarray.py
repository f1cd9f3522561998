"""The elements of one big JSON array, one after the other: the file is never in memory as a whole.

The array may be the file's only value, or the one list of rows inside an object: ``{"version": 1, "data": [...]}``.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterator
from typing import IO, Any

CHUNK = 1 << 16
SPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()


class NotJson(ValueError):
    """The file is broken from here on; the message says what is wrong and in which line."""


class JsonText:
    """Reads values out of a stream of JSON text.

    Args:
        file: Opened for bytes.

    Raises:
        NotJson: From any method: the text is not UTF-8 or not JSON.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text = ""
        self._at = 0
        self._line = 1
        self._more()

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            self._at = _space(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, expected: str) -> str:
        """Pass over the next character, which has to be one of these."""
        found = self.peek()
        if not found or found not in expected:
            raise self._broken(f"{found or 'the end of the file'!r} stands where one of {expected!r} is expected")
        self._at += 1
        return found

    def value(self) -> Any:
        """Decode the next value."""
        self.peek()
        while True:
            try:
                found, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # A text that goes on looks broken at its end, or has a string that is still open.
                open_end = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                if not (open_end and self._more()):
                    raise self._broken(error.msg, error.pos) from None
                continue
            except (ValueError, RecursionError) as error:
                raise self._broken(f"Python cannot hold it: {error}") from None
            if end < len(self._text) or not self._more():  # a number may go on
                self._at = end
                return found

    def row_list(self, row_keys: Collection[str]) -> bool:
        """Whether an object begins here that is no row but holds a list of rows; if so, go to that list.

        Args:
            row_keys: An object with one of these keys is a row.
        """
        try:
            at = _row_list(self._text, self._at, row_keys)
        except (ValueError, IndexError, RecursionError):
            return False
        self._at = self._at if at is None else at
        return at is not None

    def elements(self) -> Iterator[Any]:
        """The elements of the array that begins here."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        separator = ","
        while separator == ",":
            yield self.value()
            separator = self.take(",]")

    def end(self, *, inside: bool) -> None:
        """Read to the end of the file, and of the object around the list (``inside``), which may hold no second one."""
        while inside and self.take(",}") == ",":
            key = self.value()
            self.take(":")
            if self.peek() == "[":
                raise self._broken(f"the object holds more than one list, also {ascii(key)[:40]}. Give each a file")
            self.value()
        if self.peek():
            raise self._broken("there is more behind its end")

    def _more(self) -> bool:
        """Read on, twice as much as there is to keep; what is used up is let go."""
        self._line += self._text.count("\n", 0, self._at)
        kept = self._text[self._at :]
        data = self._file.read(max(CHUNK, len(kept)))
        try:
            self._text, self._at = kept + self._decode(data, not data), 0
        except UnicodeDecodeError as error:
            raise NotJson(f"is not UTF-8 ({error.reason}) behind line {self._line}") from None
        return bool(data)

    def _broken(self, reason: str, at: int | None = None) -> NotJson:
        line = self._line + self._text.count("\n", 0, self._at if at is None else at)
        return NotJson(f"is not JSON: {reason} (line {line})")


def _space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _row_list(text: str, at: int, row_keys: Collection[str]) -> int | None:
    while text[at] in "{,":
        at = _space(text, at + 1)
        key, at = DECODER.raw_decode(text, at)
        at = _space(text, at)
        if key in row_keys or text[at] != ":":
            return None
        at = _space(text, at + 1)
        if text[at] == "[" and text[_space(text, at + 1)] == "{":
            return at
        _, at = DECODER.raw_decode(text, at)
        at = _space(text, at)
    return None
