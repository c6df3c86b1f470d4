"""What a regular expression of a pre-tokenizer can match next to each other.

The positions of Glushkov's construction: every character class of the expression is a position,
and `follow` says which may match the character after another. From that follows where no match
can run across, whatever the text. Expressions with anything else than classes, groups,
alternatives, repetition and lookaheads of one character are not analysed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

NONSPACE = "\\S"
"""Stands for any character that is not white space."""

_ESCAPES = frozenset("sSdDwWrntfv")
_WHITE_SPACE = r"(?:\\[srntfv]|[ \t\n\r])"
_ONLY_SPACE = re.compile(
    rf"{_WHITE_SPACE}|\[{_WHITE_SPACE}+\]|\[\^(?:\\[srntfv]|[ \t])*\\S(?:\\[srntfv]|[ \t])*\]"
)
_NAMED = re.compile(r"\\[pP]\{\^?\w+\}|\\x\{[0-9a-fA-F]+\}|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}")
_COUNT = re.compile(r"\{(\d*)(,?)(\d*)\}")


class UnknownPatternError(Exception):
    """The expression has something that is not analysed."""


@dataclass(frozen=True)
class Position:
    """One character of a match, or a lookahead at one character.

    Attributes:
        atom: Source of its character class.
        lookahead: Empty, ``=`` or ``!``.
    """

    atom: str
    lookahead: str = ""

    def may_be(self, symbol: str) -> bool:
        """Whether the class has the character; for `NONSPACE`, whether it may have such a one."""
        if symbol == NONSPACE:
            return _ONLY_SPACE.fullmatch(self.atom) is None
        return _matches(self.atom, symbol)


@lru_cache(maxsize=4096)
def _matches(atom: str, character: str) -> bool:
    from tokenizers import Regex, normalizers

    return normalizers.Replace(Regex(f"(?:{atom})"), "").normalize_str(character) == ""


@dataclass
class _Part:
    nullable: bool
    empty: bool  # whether it can match without taking a character
    first: set[int] = field(default_factory=set)
    last: set[int] = field(default_factory=set)
    plain: bool = True  # a path through its positions is always found when it matches


@dataclass
class Pattern:
    """The positions of an expression.

    Attributes:
        positions: In the order of the expression.
        follow: For each position, those that may come right after it; lookaheads among them.
        alternatives: First and last positions of each alternative, and whether each path from a
            first to a last position is a match.
    """

    positions: list[Position] = field(default_factory=list)
    follow: dict[int, set[int]] = field(default_factory=dict)
    alternatives: list[_Part] = field(default_factory=list)

    def may_match(self, symbol: str) -> bool:
        """Whether any match can contain the character."""
        return any(p.may_be(symbol) for p in self.positions if not p.lookahead)

    def crosses(self, left: str, right: str) -> bool:
        """Whether a match can contain the two characters next to each other."""
        return any(
            self.positions[a].may_be(left) and self.positions[b].may_be(right)
            for a in self._consuming()
            for b in self._next(a)
        )

    def always_matches(self, character: str) -> bool:
        """Whether there is a match wherever the character is, be it of that character alone."""
        return any(
            part.plain and any(self.positions[p].may_be(character) for p in part.first & part.last)
            for part in self.alternatives
        )

    def looks(self, left: str, right: str) -> list[int]:
        """Return the positions of ``left`` after which a lookahead depends on ``right``."""
        return [
            a
            for a in self._consuming()
            if self.positions[a].may_be(left)
            and any(self.positions[look].may_be(right) for look in self._lookaheads(a))
        ]

    def may_precede(self, position: int, symbol: str) -> bool:
        """Whether, in a match, the character can stand right before a position."""
        return any(
            position in self._next(a) and self.positions[a].may_be(symbol)
            for a in self._consuming()
        )

    @property
    def has_lookaheads(self) -> bool:
        """Whether there are any."""
        return any(position.lookahead for position in self.positions)

    def _consuming(self) -> list[int]:
        return [i for i, position in enumerate(self.positions) if not position.lookahead]

    def _reached(self, position: int) -> set[int]:
        """Positions after one, and after lookaheads that come after it."""
        found: set[int] = set()
        todo = set(self.follow.get(position, ()))
        while todo:
            one = todo.pop()
            found.add(one)
            if self.positions[one].lookahead:
                todo |= self.follow.get(one, set()) - found
        return found

    def _next(self, position: int) -> set[int]:
        return {p for p in self._reached(position) if not self.positions[p].lookahead}

    def _lookaheads(self, position: int) -> set[int]:
        return {p for p in self._reached(position) if self.positions[p].lookahead}


@lru_cache(maxsize=64)
def parse_pattern(source: str) -> Pattern:
    """Return the positions of an expression in the syntax of the ``tokenizers`` library.

    Raises:
        UnknownPatternError: It has an anchor, a lookbehind or a reference, or can match an empty
            text.
    """
    parser = _Parser(source)
    whole = parser.alternatives(top=True)
    if parser.place < len(source) or whole.empty:
        raise UnknownPatternError(source)
    return parser.pattern


class _Parser:
    def __init__(self, source: str) -> None:
        self.source, self.place = source, 0
        self.pattern = Pattern()
        self.ignore_case = False

    def alternatives(self, *, top: bool = False) -> _Part:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        if top:
            self.pattern.alternatives = parts
        return _Part(
            nullable=any(part.nullable for part in parts),
            empty=any(part.empty for part in parts),
            first=set().union(*(part.first for part in parts)),
            last=set().union(*(part.last for part in parts)),
            plain=all(part.plain for part in parts),
        )

    def _take(self, text: str) -> bool:
        if self.source.startswith(text, self.place):
            self.place += len(text)
            return True
        return False

    def _sequence(self) -> _Part:
        whole = _Part(nullable=True, empty=True)
        while self.place < len(self.source) and self.source[self.place] not in "|)":
            part = self._repeated(self._item())
            for last in whole.last:
                self.pattern.follow.setdefault(last, set()).update(part.first)
            if whole.nullable:
                whole.first |= part.first
            whole.last = part.last | (whole.last if part.nullable else set())
            whole.nullable = whole.nullable and part.nullable
            whole.empty = whole.empty and part.empty
            whole.plain = whole.plain and part.plain
        return whole

    def _repeated(self, part: _Part) -> _Part:
        while self.place < len(self.source):
            count = _COUNT.match(self.source, self.place)
            if count is not None and (count[1] or count[3]):
                self.place = count.end()
                least = int(count[1] or 0)
                most = (int(count[3]) if count[3] else None) if count[2] else least
                self._repeat(part, least=least, again=most is None or most > 1)
            elif self.source[self.place] in "?*+":
                sign = self.source[self.place]
                self.place += 1
                self._repeat(part, least=int(sign == "+"), again=sign != "?")
            else:
                break
            if self._take("+"):  # possessive; after a count, one more repetition
                self._repeat(part, least=1, again=count is not None)
                part.plain = False
            else:
                self._take("?")  # lazy
        return part

    def _repeat(self, part: _Part, *, least: int, again: bool) -> None:
        part.nullable = part.nullable or least == 0
        part.empty = part.empty or least == 0
        part.plain = part.plain and least < 2
        if again:
            for last in part.last:
                self.pattern.follow.setdefault(last, set()).update(part.first)

    def _item(self) -> _Part:
        for look, sign in (("(?=", "="), ("(?!", "!")):
            if self._take(look):
                part = self._position(self._atom(), sign)
                if not self._take(")"):
                    raise UnknownPatternError(self.source)
                return part
        before = self.ignore_case
        for opening in ("(?:", "(?i:", "("):
            if self._take(opening):
                if opening == "(" and self.source.startswith("?", self.place):
                    raise UnknownPatternError(self.source)
                self.ignore_case = before or opening == "(?i:"
                part = self.alternatives()
                self.ignore_case = before
                if not self._take(")"):
                    raise UnknownPatternError(self.source)
                return part
        return self._position(self._atom(), "")

    def _position(self, atom: str, lookahead: str) -> _Part:
        number = len(self.pattern.positions)
        if self.ignore_case:
            atom = f"(?i:{atom})"
        self.pattern.positions.append(Position(atom, lookahead))
        return _Part(False, bool(lookahead), {number}, {number}, plain=not lookahead)

    def _atom(self) -> str:
        start = self.place
        character = self.source[start : start + 1]
        if character == "[":
            self.place = self._end_of_set(start)
        elif character == "\\":
            self.place = self._end_of_escape(start)
        elif not character or character in "^$*+?)|":
            raise UnknownPatternError(self.source)
        else:
            self.place += 1
            if character in "{}]":
                return "\\" + character
        return self.source[start : self.place]

    def _end_of_escape(self, start: int) -> int:
        following = self.source[start + 1 : start + 2]
        named = re.compile(
            r"\\[pP]\{\^?\w+\}|\\x\{[0-9a-fA-F]+\}|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}"
        )
        found = named.match(self.source, start)
        if found is not None:
            return found.end()
        if following in _ESCAPES or (following and not following.isalnum()):
            return start + 2
        raise UnknownPatternError(self.source)

    def _end_of_set(self, start: int) -> int:
        depth, place = 0, start
        while place < len(self.source):
            character = self.source[place]
            if character == "\\":
                place += 1
            elif character == "[":
                depth += 1
                place += self.source.startswith("^", place + 1)
                if self.source.startswith("]", place + 1):  # a literal one, or an empty class
                    raise UnknownPatternError(self.source)
            elif character == "]":
                depth -= 1
                if depth == 0:
                    return place + 1
            place += 1
        raise UnknownPatternError(self.source)
