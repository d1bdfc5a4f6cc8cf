"""The caching allocator once more, slow and obvious: lists of cells, searched from end to end, nothing kept twice."""

from __future__ import annotations

from dataclasses import dataclass, field

from memprof.allocator.settings import UNLIMITED, AllocatorSettings

MIB = 2**20


@dataclass
class Cell:
    start: int
    size: int
    state: str  # "free", "used", "waiting" or "hole"
    requested: int = 0
    born: int = 0


@dataclass
class Segment:
    base: int
    stream: int
    small: bool
    cells: list[Cell] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return len(self.cells) == 1


class SlowAllocator:
    def __init__(self, capacity: int, settings: AllocatorSettings) -> None:
        self.capacity, self.settings = capacity, settings
        self.segments: list[Segment] = []
        self.searches = {True: 0, False: 0}
        self.next_segment, self.next_range = 0x1000_0000_0000, 0x4000_0000_0000
        fraction = settings.memory_fraction
        self.allowed = None if fraction is None else int(capacity * fraction)

    def cells(self, *states: str) -> list[tuple[Segment, Cell]]:
        return [(segment, cell) for segment in self.segments for cell in segment.cells if cell.state in states]

    def total(self, *states: str) -> int:
        return sum(cell.size for _, cell in self.cells(*states))

    @property
    def reserved(self) -> int:
        return self.total("free", "used", "waiting")

    def allocate(self, requested: int, stream: int) -> int | None:
        size = self.round(requested)
        small = size <= MIB
        found = self.search(size, stream, small) or self.more(size, stream, small)
        if found is None:
            return None
        segment, cell = found
        rest = cell.size - size
        if small or self.settings.expandable_segments:
            splits = rest >= 512
        else:
            splits = rest > MIB and size < self.settings.max_split_bytes
        if splits:
            where = segment.cells.index(cell) + 1
            segment.cells.insert(where, Cell(cell.start + size, rest, "free", born=self.searches[small]))
            cell.size = size
        cell.state, cell.requested = "used", requested
        return cell.start

    def free(self, address: int, later: bool = False) -> None:
        segment, cell = next(found for found in self.cells("used", "waiting") if found[1].start == address)
        if later:
            cell.state = "waiting"
        else:
            self.put_back(segment, cell)

    def put_back(self, segment: Segment, cell: Cell) -> None:
        cell.state, cell.requested, cell.born = "free", 0, self.searches[segment.small]
        self.tidy(segment)

    def empty_cache(self) -> None:
        for segment, cell in self.cells("waiting"):
            self.put_back(segment, cell)
        for segment, cell in self.cells("free"):
            if self.settings.expandable_segments:
                self.unmap(segment, cell)
            elif segment.whole:
                self.segments.remove(segment)

    def round(self, size: int) -> int:
        interval = 0
        while interval < 15 and size >= MIB * 2 ** (interval + 1):
            interval += 1
        divisions = self.settings.roundup_divisions[interval]
        if divisions <= 1 or size <= 512 * divisions:
            return max(512, (size + 511) // 512 * 512)
        power = 1
        while power * 2 <= size:
            power *= 2
        return next(step for step in range(power, 2 * power + 1, power // divisions) if step >= size)

    def search(self, size: int, stream: int, small: bool) -> tuple[Segment, Cell] | None:
        if self.collects_garbage:
            self.searches[small] += 1
        fitting = [
            (segment, cell)
            for segment, cell in self.cells("free")
            if segment.stream == stream and segment.small == small and cell.size >= size
        ]
        fitting.sort(key=lambda found: (found[1].size, found[1].start))
        if self.settings.expandable_segments:
            while len(fitting) > 1 and self.could_grow_to(*fitting[1]) < self.could_grow_to(*fitting[0]):
                fitting.pop(0)
        if not fitting:
            return None
        best, limit = fitting[0][1].size, self.settings.max_split_bytes
        if size < limit and best >= limit:
            return None
        if size >= limit and best - size >= self.settings.max_non_split_rounding_bytes:
            return None
        return fitting[0]

    def could_grow_to(self, segment: Segment, cell: Cell) -> int:
        after = [
            other.size for other in segment.cells if other.state == "hole" and other.start == cell.start + cell.size
        ]
        return cell.size + sum(after)

    @property
    def collects_garbage(self) -> bool:
        return self.allowed is not None and self.settings.garbage_collection_threshold > 0

    def more(self, size: int, stream: int, small: bool) -> tuple[Segment, Cell] | None:
        if self.collects_garbage:
            self.collect_garbage()
        found = self.new(size, stream, small)
        if found is None and self.release_some(size, stream, small):
            found = self.new(size, stream, small)
        if found is None:
            self.empty_cache()
            found = self.new(size, stream, small)
        return found

    def new(self, size: int, stream: int, small: bool) -> tuple[Segment, Cell] | None:
        if small:
            wanted = 2 * MIB
        else:
            wanted = (
                self.settings.large_segment_bytes if size < 10 * MIB else (size + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
            )
        if self.allowed is not None and self.reserved + wanted > self.allowed:
            return None
        if self.settings.expandable_segments:
            return self.grow(size, stream, small)
        if self.reserved + wanted > self.capacity:
            return None
        segment = Segment(self.next_segment, stream, small, [Cell(self.next_segment, wanted, "free")])
        self.next_segment += (wanted + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
        self.segments.append(segment)
        return segment, segment.cells[0]

    def release_some(self, size: int, stream: int, small: bool) -> bool:
        limit = self.settings.max_split_bytes
        if limit == UNLIMITED or self.settings.expandable_segments:
            return False
        needed = max(size, limit)
        free = [found for found in self.cells("free") if found[0].stream == stream and found[0].small == small]
        free.sort(key=lambda found: (found[1].size, found[1].start))
        enough = [segment for segment, cell in free if cell.size >= needed]
        if enough:
            self.segments.remove(enough[0])
            return True
        gone = 0
        for segment, cell in reversed(free):
            if gone < needed and cell.size >= limit:
                self.segments.remove(segment)
                gone += cell.size
        return gone >= needed

    def collect_garbage(self) -> None:
        target = self.reserved - int(self.settings.garbage_collection_threshold * (self.allowed or 0))
        freed = 0
        while not self.settings.expandable_segments and freed < target:
            whole = [found for found in self.cells("free") if found[0].whole and not found[0].small]
            ages = [self.searches[False] - cell.born for _, cell in whole]
            if not whole:
                return
            for (segment, cell), age in zip(whole, ages, strict=True):
                if age >= sum(ages) / len(ages):
                    self.segments.remove(segment)
                    freed += cell.size

    def page(self, small: bool) -> int:
        return 2 * MIB if small else self.settings.large_segment_bytes

    def grow(self, size: int, stream: int, small: bool) -> tuple[Segment, Cell] | None:
        """Map the lowest place where free bytes and holes in a row are enough; a range of its own if there is none."""
        page = self.page(small)
        for segment in self.segments:
            if (segment.stream, segment.small) == (stream, small):
                for where, cell in enumerate(segment.cells):
                    if cell.state == "hole" or (cell.state == "free" and self.could_grow_to(segment, cell) > cell.size):
                        row = 0
                        for other in segment.cells[where:]:
                            if other.state not in ("free", "hole"):
                                break
                            row += other.size
                        if row >= size:
                            return self.map(segment, cell.start, size, page)
        length = -(-(self.capacity + self.capacity // 8) // page) * page
        segment = Segment(self.next_range, stream, small, [Cell(self.next_range, length, "hole")])
        self.next_range += length + 2**30
        self.segments.append(segment)
        return self.map(segment, segment.base, size, page)

    def map(self, segment: Segment, start: int, size: int, page: int) -> tuple[Segment, Cell] | None:
        while True:
            cell = next(one for one in segment.cells if one.start == start)
            if cell.state == "free" and cell.size >= size:
                return segment, cell
            hole = next(one for one in segment.cells if one.state == "hole" and one.start >= start)
            missing = size - (cell.size if cell.state == "free" else 0)
            pages = min(-(-missing // page) * page, hole.size)
            if self.reserved + pages > self.capacity:
                return None
            where = segment.cells.index(hole)
            if hole.size > pages:
                segment.cells.insert(where + 1, Cell(hole.start + pages, hole.size - pages, "hole"))
                hole.size = pages
            hole.state, hole.born = "free", self.searches[segment.small]
            self.tidy(segment)

    def unmap(self, segment: Segment, cell: Cell) -> None:
        page = self.page(segment.small)
        first = segment.base + -(-(cell.start - segment.base) // page) * page
        last = segment.base + (cell.start + cell.size - segment.base) // page * page
        if first < last:
            end, now = cell.start + cell.size, self.searches[segment.small]
            parts = [
                Cell(cell.start, first - cell.start, "free", born=now),
                Cell(first, last - first, "hole"),
                Cell(last, end - last, "free", born=now),
            ]
            where = segment.cells.index(cell)
            segment.cells[where : where + 1] = [part for part in parts if part.size]
            self.tidy(segment)
            if segment.whole:  # a range that never had memory stays
                self.segments.remove(segment)

    def tidy(self, segment: Segment) -> None:
        """Put neighbours of one kind together; a free cell that grew is as if it had become free now."""
        tidied: list[Cell] = []
        for cell in segment.cells:
            if tidied and tidied[-1].state == cell.state and cell.state in ("free", "hole"):
                tidied[-1].size += cell.size
                tidied[-1].born = self.searches[segment.small]
            else:
                tidied.append(cell)
        segment.cells = tidied
