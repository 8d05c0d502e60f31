"""The demo warehouse: invented bins, rendered here, in the layout of the real data.

The files of a bin are a function of (seed, number): the same bytes on every run, in any order, for any number of bins.
Numbers come in blocks of six; those of a block that share a letter of its pattern are photographs of the same bin, each
with one item more or fewer than the one before.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, Literal, get_args

import numpy as np

from bintally.bins.objects import UNCHANGED, Unread
from bintally.demo.render import Item, Kind, Photo, Product, Rng, render, to_jpeg

DefectKind = Literal[
    "wrong record",  # the quantities agree with EXPECTED_QUANTITY but not with the items in the photograph
    "blurred",
    "broken image",  # a truncated JPEG
    "missing image",
    "broken record",  # not JSON
    "no expected quantity",
    "quantities disagree",  # EXPECTED_QUANTITY is not the sum of the quantities
]
DEFECTS: tuple[DefectKind, ...] = get_args(DefectKind)
DEFECT_SHARES = (0.03, 0.03, 0.002, 0.002, 0.002, 0.002, 0.002)

COUNT_SHARES = np.array([0.03, 0.075, 0.15, 0.19, 0.165, 0.125, 0.105, 0.09, 0.07])  # of 0, 1, … 8 items
PATTERNS = ("ABACCD", "ABABCC", "AAABCC", "ABCCDC", "AABBCB")
BLOCK = len(PATTERNS[0])
TOPICS = ("pattern", "bin", "shot", "defect", "record")  # each has its own stream of random numbers
BATCH = 1024  # images submitted to the pool at once, so that a slow reader does not fill the memory
MIN_IMAGES_PER_PROCESS = 32  # starting a process takes longer than rendering fewer

SIZE = (0.56, 0.68)  # of an item that is alone in its bin, sides of a square as large as the opening
SIZE_EXPONENT = 0.12  # the size of an item falls with count ** SIZE_EXPONENT
SIZE_SPREAD = 0.12  # standard deviation of the logarithm of the size of one bin's products
FILLED = (1.0, 1.2)  # maximum width of all columns together over that of the bin; above 1 they overlap
COPIES = (0.5, 0.27, 0.14, 0.09)  # shares of products with 1, 2, 3 and 4 copies
ARRANGEMENTS = {"row": 0.6, "pile": 0.32, "deep": 0.08}  # of copies; deep: one behind the other
STACKED = 0.75  # share of the heaps that are stacked, of those that fit on another
LEAN = {"box": 6.0, "book": 12.0, "bottle": 4.0, "bag": 14.0}  # degrees
INCHES = 11.0  # the height of a bin

# Each kind: its share of the products, the range of height over width of its front, its products.
KINDS: dict[Kind, tuple[float, tuple[float, float], str]] = {
    "box": (0.42, (0.6, 1.5), "Desk Lamp,Tea Sampler,Puzzle 500 Pieces,Night Light,Phone Stand"),
    "book": (0.22, (2.8, 6.0), "Lantern Road,History of Salt,Winter Orchard,Field Guide,Two Rivers"),
    "bottle": (0.14, (1.3, 2.8), "Shampoo 12 oz,Glass Cleaner,Olive Soap,Sealant,Vitamin Tablets"),
    "bag": (0.22, (0.5, 1.1), "Travel Pillow,Cotton Socks,Dog Treats,Rain Poncho,Craft Beads"),
}
MAKERS = ("Quorvane", "Brimtoss", "Ellowick", "Tandrigo", "Ostrumel", "Vexhollow", "Pallindra", "Mirrowen")
EXTRAS = ("", "", ", Pack of 2", ", Blue", " (Large)", ", 6 Count", ", Second Edition", ", Refill")


@dataclass(frozen=True)
class Bin:
    """One bin of the demo warehouse: its true contents and its defect."""

    photo: Photo  # its items are the true ones
    defect: DefectKind | None
    group: int  # the lowest number of a photograph of the same bin

    @property
    def count(self) -> int:
        return len(self.photo.items)


@dataclass(frozen=True)
class DemoWarehouse:
    """All bins of one seed (not negative), numbered from 1, and the two files of each."""

    seed: int

    def bin(self, number: int) -> Bin:
        block, place = divmod(number - 1, BLOCK)
        pattern = PATTERNS[self._rng("pattern", block).integers(len(PATTERNS))]
        group = block * BLOCK + pattern.index(pattern[place]) + 1
        rng, shot = self._rng("bin", group), self._rng("shot", number)
        counts = _draw_counts(rng, photos=pattern.count(pattern[place]))
        photo = Photo(*_draw_size(rng), bin=int(rng.integers(2**63)), shot=int(shot.integers(2**63)), items=())
        left, top, right, bottom = replace(photo, shot=0).opening
        arrivals = _arrange(rng, max(counts), (right - left) / (bottom - top))
        count = counts[pattern[:place].count(pattern[place])]
        items = tuple(item for turn, item in arrivals if turn < count)
        defect = self.defect(number)
        blur = photo.width * float(shot.uniform(0.010, 0.018)) if defect == "blurred" else 0.0
        return Bin(replace(photo, items=items, blur=blur), defect, group)

    def defect(self, number: int) -> DefectKind | None:
        """Return the defect of bin `number`, if it has one."""
        draw = self._rng("defect", number).random()
        kind = int(np.searchsorted(np.cumsum(DEFECT_SHARES), draw, side="right"))
        return DEFECTS[kind] if kind < len(DEFECTS) else None

    def image(self, number: int) -> bytes | None:
        """Return the JPEG file of bin `number`, or None if it is missing."""
        bin_ = self.bin(number)
        if bin_.defect == "missing image":
            return None
        data = to_jpeg(render(bin_.photo))
        return data[: len(data) * 3 // 5] if bin_.defect == "broken image" else data

    def record(self, number: int) -> bytes:
        bin_, rng = self.bin(number), self._rng("record", number)
        quantities = Counter(item.product for item in bin_.photo.items)
        if bin_.defect == "wrong record":
            _miscount(rng, quantities)
        entries = [_entry(product, quantity) for product, quantity in quantities.items() if quantity]
        record: dict[str, Any] = {"BIN_FCSKU_DATA": {entry["asin"]: entry for entry in entries}}
        if bin_.defect != "no expected quantity":
            error = int(rng.integers(1, 3)) if bin_.defect == "quantities disagree" else 0
            record["EXPECTED_QUANTITY"] = quantities.total() + error
        text = json.dumps(record, indent=4, sort_keys=True)
        return (text[: len(text) // 2] if bin_.defect == "broken record" else text).encode()

    def _rng(self, topic: str, number: int) -> Rng:
        return np.random.default_rng([self.seed, TOPICS.index(topic), number])


class DemoSource:
    """The first `bins` bins of the demo warehouse, as a source of objects."""

    def __init__(self, bins: int, seed: int) -> None:
        """Raises ValueError if `bins` is less than 1 or `seed` is negative."""
        if bins < 1 or seed < 0:
            raise ValueError(f"bins must be at least 1 and seed at least 0, got bins={bins}, seed={seed}")
        self._bins, self._warehouse = bins, DemoWarehouse(seed)

    def ids(self) -> list[str]:
        """Return every id, sorted: "00001", "00002", …"""
        width = max(5, len(str(self._bins)))
        return [f"{number:0{width}}" for number in range(1, self._bins + 1)]

    def digests(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def read(
        self, keys: Sequence[str], known: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, bytes | Unread | None]]:
        """Yield (key, bytes), or (key, None) if the object does not exist; images are rendered on all cores.

        Keys are "metadata/<id>.json" and "bin-images/<id>.jpg". What is known is UNCHANGED: it is the same every time.
        """
        yield from ((key, UNCHANGED) for key in keys if known and key in known)
        keys = [key for key in keys if not known or key not in known]
        ids = self.ids()
        records = {f"metadata/{id_}.json": number for number, id_ in enumerate(ids, 1)}
        images = {f"bin-images/{id_}.jpg": number for number, id_ in enumerate(ids, 1)}
        yield from ((key, None) for key in keys if key not in records and key not in images)
        yield from ((key, self._warehouse.record(records[key])) for key in keys if key in records)
        image_keys = [key for key in keys if key in images]
        processes = min(len(os.sched_getaffinity(0)), len(image_keys) // MIN_IMAGES_PER_PROCESS)
        if processes < 2:
            yield from ((key, self._warehouse.image(images[key])) for key in image_keys)
            return
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            for start in range(0, len(image_keys), BATCH):
                batch = image_keys[start : start + BATCH]
                rendered = pool.map(self._warehouse.image, [images[key] for key in batch], chunksize=8)
                yield from zip(batch, rendered, strict=True)


def _draw_counts(rng: Rng, photos: int) -> list[int]:
    """Draw the count of each of `photos` photographs of the same bin; each differs from the one before by one."""
    shares = COUNT_SHARES.copy()
    if photos > 1:
        shares[0] = 0.0  # photographs of the same bin share a product, so none is empty
    counts = [int(rng.choice(len(shares), p=shares / shares.sum()))]
    while len(counts) < photos:
        step = int(rng.choice((-1, 1)))
        counts.append(counts[-1] + (step if 1 <= counts[-1] + step < len(shares) else -step))
    return counts


def _draw_size(rng: Rng) -> tuple[int, int]:
    """Draw the width and height of a photograph, pixels; four of five are landscape."""
    long = int(rng.triangular(340, 420, 650))
    if rng.random() < 0.8:
        return long, max(300, int(long / rng.uniform(1.1, 1.7)))
    return max(300, int(long * rng.uniform(0.62, 0.98))), long


def _draw_product(rng: Rng, size: float) -> Product:
    """Draw a product about `size` bin heights wide and high."""
    kind = list(KINDS)[rng.choice(len(KINDS), p=[share for share, _, _ in KINDS.values()])]
    _, ratios, products = KINDS[kind]
    title = f"{rng.choice(MAKERS)} {rng.choice(products.split(','))}{rng.choice(EXTRAS)}"
    size *= rng.lognormal(0, SIZE_SPREAD) * (0.75 if kind == "book" else 1.0)
    slim, depth = rng.uniform(*ratios) ** 0.5, size * rng.uniform(0.4, 1.2)
    return Product(kind, title, width=size / slim, height=size * slim, depth=depth, look=int(rng.integers(2**63)))


def _arrange(rng: Rng, count: int, width: float) -> list[tuple[int, Item]]:
    """Place `count` items in a bin `width` wide; return them farthest first, each with its order of arrival.

    The copies of a product form a heap, heaps are stacked in columns where they fit, columns stand side by side.
    """
    size = rng.uniform(*SIZE) * width**0.5 * max(count, 1) ** -SIZE_EXPONENT
    columns: list[list[Item]] = []
    while missing := count - sum(map(len, columns)):
        heap = _heap(rng, _draw_product(rng, size), min(missing, int(rng.choice((1, 2, 3, 4), p=COPIES))))
        right, top = _right_and_top(heap)
        for column in columns:
            wide, floor = _right_and_top(column)
            if right < 1.5 * wide and top + floor < 1.1 and rng.random() < STACKED:
                aside = (wide - right) * rng.uniform(0.2, 0.8)
                column += [replace(item, x=item.x + aside, y=item.y + floor) for item in heap]
                break
        else:
            columns.append(heap)
    rng.shuffle(columns)
    widths = [_right_and_top(column)[0] for column in columns]
    total, tall = sum(widths), max((_right_and_top(column)[1] for column in columns), default=1.0)
    scale = min(1.0, width * rng.uniform(*FILLED) / max(total, 0.1), rng.uniform(0.9, 1.05) / tall)
    gaps = rng.dirichlet(np.full(len(columns) + 1, 2.0)) * (width - scale * total)
    turns, left, placed = rng.permutation(count).tolist(), 0.0, list[tuple[int, Item]]()
    for column, gap, across in zip(columns, gaps, widths, strict=False):
        left, back = left + gap, rng.uniform(0, 0.4)
        first = sorted(turns.pop() for _ in column)  # what lies below arrived before what lies on it
        for turn, item in zip(first, column, strict=True):
            p = item.product
            p = replace(p, width=p.width * scale, height=p.height * scale, depth=p.depth * scale)
            x, y, z = left + item.x * scale, item.y * scale, item.back + back
            placed.append((turn, replace(item, product=p, x=x, y=y, back=z)))
        left += across * scale
    return sorted(placed, key=lambda pair: (-pair[1].back, pair[1].y))


def _heap(rng: Rng, product: Product, copies: int) -> list[Item]:
    """Place copies of one product in a row, in piles or behind each other, from the left wall."""
    kind, arrangement = product.kind, rng.choice(list(ARRANGEMENTS), p=list(ARRANGEMENTS.values()))
    level = int(rng.integers(2, 4)) if arrangement == "pile" and kind != "bottle" else 1
    lying = product.height > product.width and (level > 1 or (kind == "book" and rng.random() < 0.25))
    w, h = Item(product, 0, 0, 0, 0, lying).extent
    stride, deeper = (rng.uniform(0.3, 0.6), 0.2) if arrangement == "deep" else (rng.uniform(0.85, 1.05), 0.0)
    lean = 0.0 if lying or level > 1 else rng.normal(0, LEAN[kind])
    tilts = lean + rng.normal(0, 1 + LEAN[kind] / 4, copies)
    aside = w * rng.normal(0.5, 0.03, copies)
    return [
        Item(product, aside[k] + k // level * stride * w, k % level * h, deeper * k, tilts[k], lying)
        for k in range(copies)
    ]


def _right_and_top(items: list[Item]) -> tuple[float, float]:
    """The right end and the height of a heap or column."""
    return max(it.x + it.extent[0] / 2 for it in items), max(it.y + it.extent[1] for it in items)


def _entry(product: Product, quantity: int) -> dict[str, Any]:
    """The entry of one product in a record; 4 % have a field that is null."""
    rng = np.random.default_rng(product.look)
    letters = list("0123456789" if product.kind == "book" else "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ")
    sides = {"height": product.depth, "length": product.height, "width": product.width}
    entry: dict[str, Any] = {side: {"unit": "IN", "value": round(v * INCHES, 1)} for side, v in sides.items()}
    entry["asin"] = ("17" if product.kind == "book" else "B0") + "".join(rng.choice(letters, 8))
    entry["name"] = entry["normalizedName"] = product.title
    entry["quantity"] = quantity
    entry["weight"] = {"unit": "pounds", "value": round(rng.uniform(0.1, 4.0), 2)}
    if rng.random() < 0.04:
        entry[str(rng.choice(("weight", "height", "length", "width", "normalizedName")))] = None
    return entry


def _miscount(rng: Rng, quantities: Counter[Product]) -> None:
    """Add or remove one or two items."""
    change = int(rng.integers(1, 3))
    if quantities.total() > change and rng.random() < 0.5:
        items = list(quantities.elements())
        quantities.subtract(items[k] for k in rng.permutation(len(items))[:change])
    else:
        quantities[_draw_product(rng, SIZE[0])] += change
