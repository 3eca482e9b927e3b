"""Where each unit of each plan record stands in the order of commits: one row of numbers, of which every record has a stretch."""

from array import array
from typing import Any

import numpy as np

OPEN, BURIED = 0, -1
"""In the index; anything else is a place in the order of commits, counted from 1."""

_Numbers = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


class UnitIndex:
    """What became of units, by record and number. A stretch that is too short is copied to the end, twice as long."""

    def __init__(self) -> None:
        self._row = array("i")
        self._begin = array("q")
        self._room = array("q")
        self._settled = array("q")

    def __len__(self) -> int:
        """Records that it has heard of."""
        return len(self._begin)

    def num_settled(self, record: int) -> int:
        """Units of a record that are not open."""
        return self._settled[record] if record < len(self) else 0

    def at(self, record: int, number: int) -> int:
        """What became of a unit."""
        if record >= len(self) or number >= self._room[record]:
            return OPEN
        return self._row[self._begin[record] + number]

    def stretch(self, record: int, start: int, end: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
        """What became of units [start, end) of a record."""
        found = np.zeros(end - start, np.int32)
        if record < len(self):
            begin = self._begin[record]
            known = np.frombuffer(self._row, np.int32)[begin + start : begin + min(end, self._room[record])]
            found[: len(known)] = known
        return found

    def record(self, record: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
        """What became of the units of a record, as far as it has heard of them."""
        return self.stretch(record, 0, self._room[record])

    def cells(self, records: _Numbers, numbers: _Numbers) -> _Numbers:
        """Where in the row these units are, for which there is room from then on."""
        self._make_room(records, numbers)
        return np.frombuffer(self._begin, np.int64)[records] + numbers

    def get(self, cells: _Numbers) -> "np.ndarray[Any, np.dtype[np.int32]]":
        """What became of the units in these cells."""
        return np.frombuffer(self._row, np.int32)[cells]

    def settle(self, records: _Numbers, cells: _Numbers, places: "_Numbers | int") -> None:
        """Units that are all open, and differ, stand at these places, or are all buried."""
        np.frombuffer(self._row, np.int32)[cells] = places
        np.add.at(np.frombuffer(self._settled, np.int64), records, 1)

    def _make_room(self, records: _Numbers, numbers: _Numbers) -> None:
        fresh = max(0, int(records.max(initial=-1)) + 1 - len(self))
        for column in (self._begin, self._room, self._settled):
            column.frombytes(bytes(column.itemsize * fresh))
        room = np.frombuffer(self._room, np.int64)
        if (numbers < room[records]).all():
            return
        needed = np.zeros(len(room), np.int64)
        np.maximum.at(needed, records, numbers + 1)
        short: list[int] = np.flatnonzero(needed > room).tolist()
        del room  # an array that is looked at cannot grow
        for record in short:
            self._move(record, max(int(needed[record]), 2 * self._room[record]))

    def _move(self, record: int, room: int) -> None:
        begin, end = self._begin[record], len(self._row)
        self._row.extend(self._row[begin : begin + self._room[record]])
        self._row.frombytes(bytes(self._row.itemsize * (end + room - len(self._row))))
        self._begin[record], self._room[record] = end, room
