"""Predictions as a Parquet dataset: a folder with a file for each share of the photographs, scored on any machine."""

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bintally import paths
from bintally.apps.photographs import Photographs
from bintally.apps.predictions import RUN
from bintally.apps.scores import PART
from bintally.errors import UserError
from bintally.hashing import file_digest, sha256_hex

MAX_PARTS = 100_000
NAMED = 10  # parts in a message


@dataclass(frozen=True)
class Part:
    """One of ``of_parts`` shares of the photographs, from 1 on."""

    folder: Path
    number: int
    parts: int

    @staticmethod
    def parse(text: str, folder: Path) -> "Part":
        """The part that ``text`` names, such as 3/16. Raises UserError if it is none, or the folder has other ones."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]) <= MAX_PARTS:
            raise UserError(f"--part: '{text}' must be K/N, such as 3/16, with K from 1 to N, at most {MAX_PARTS:,}")
        part = Part(folder, int(found[1]), int(found[2]))
        if folder.suffix in (".csv", ".parquet"):
            raise UserError(f"--to: '{folder}' must be the name of a folder with --part, not of a file")
        other = next((file for file in folder.glob("part-*.parquet") if not part._is_one(file)), None)
        if other:
            raise UserError(f"{folder} holds {other.name}, which is not one of {part.parts} parts; take another folder")
        return part

    @property
    def file(self) -> Path:
        return self.folder / f"part-{self._name(self.number)}.parquet"

    @property
    def rejected_file(self) -> Path:
        """Begins with a line, which those who read datasets leave out."""
        return self.folder / f"_rejected-{self._name(self.number)}.csv"

    def _name(self, number: int) -> str:
        digits = len(str(self.parts))
        return f"{number:0{digits}}-of-{self.parts}"

    def _is_one(self, file: Path) -> bool:
        return re.fullmatch(rf"part-[0-9]{{{len(str(self.parts))}}}-of-{self.parts}\.parquet", file.name) is not None

    def of(self, ids: list[str]) -> list[str]:
        """This share of the ids, cut where a run of them all begins a file: the last digits depend on the batch."""
        files = -(-len(ids) // PART)
        first, after = (files * number // self.parts * PART for number in (self.number - 1, self.number))
        return ids[first:after]

    def key(self, photographs: Photographs, model: Path, with_records: bool) -> str:
        """What all parts have in common: the model, the source and how many photographs it has."""
        digests = [file_digest(model / name) for name in paths.MODEL_FILES]
        job = f"{photographs.name} {len(photographs.ids)} {with_records}"
        return sha256_hex(*digests, job.encode(errors="surrogateescape"))

    def progress(self, key: str) -> str:
        """Whether the dataset is complete, and which parts are missing or of another run."""
        missing, others = [], []
        for number in range(1, self.parts + 1):
            file = self.folder / f"part-{self._name(number)}.parquet"
            if not file.exists():
                missing.append(number)
            elif _key_of(file) != key:
                others.append(number)
        if not missing and not others:
            return f"{self.folder}: complete, {self.parts:,} parts"
        states = (("missing", missing), ("of another model or source, or damaged", others))
        told = "; ".join(f"{state}: {_some(numbers)}" for state, numbers in states if numbers)
        return f"{self.folder}: {self.parts - len(missing) - len(others):,} of {self.parts:,} parts; {told}"


def _key_of(file: Path) -> str:
    """The key of the run that wrote a part; "" if it cannot be read."""
    try:
        metadata: dict[bytes, bytes] = pq.read_schema(file).metadata or {}
        return metadata.get(RUN, b"").decode(errors="replace")
    except (OSError, pa.ArrowException):
        return ""


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:NAMED])) + (
        f" and {len(numbers) - NAMED:,} more" if len(numbers) > NAMED else ""
    )
