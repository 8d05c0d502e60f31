"""Write a folder of 60 photographs and their spreadsheet, as an office might keep them, from the demo warehouse.

python docs/example_stock.py exports/stock

The photographs are JPEG, PNG, WebP and TIFF files. The spreadsheet is German: a title, columns by other names,
semicolons, decimal commas, euros, Windows' separators in paths and its encoding; a cell is empty, a row is there twice,
a file is missing.
"""

import argparse
import io
import json
from pathlib import Path

from PIL import Image

from bintally.bins.objects import image_key, record_key
from bintally.demo.warehouse import DemoSource
from bintally.files import write_text

BINS, SEED = 60, 7  # another warehouse than that of params.yaml
SUFFIXES = {"jpg": "JPEG", "JPG": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}
COLUMNS = """fetch:
  table:
    photograph: Bild
    count: Soll-Menge
    bin: Fach
    location: Fach
    value: Stückpreis
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a folder of photographs and their spreadsheet.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    source = DemoSource(2 * BINS, SEED)
    found = dict(source.read([make(bin_id) for bin_id in source.ids() for make in (image_key, record_key)]))
    rows = []
    for bin_id in source.ids():
        photograph, record = found[image_key(bin_id)], found[record_key(bin_id)]
        try:
            count = json.loads(record)["EXPECTED_QUANTITY"] if isinstance(record, bytes) else 0
            image = Image.open(io.BytesIO(photograph)).convert("RGB") if isinstance(photograph, bytes) else None
        except (ValueError, KeyError, OSError):  # some of the demo's are broken
            continue
        if image is None or not 1 <= count <= 5 or len(rows) == BINS:
            continue
        number = len(rows)
        suffix = list(SUFFIXES)[number % len(SUFFIXES)]
        shelf, place = number // 10 + 1, number % 10 + 1
        name = f"Fotos/Regal {shelf}/Fach {place:02}.{suffix}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, SUFFIXES[suffix])
        path = name.replace("/", "\\")
        rows.append(f"R{shelf}-{place:02};{path};{count};{number % 7 * 12 + 3},{number % 10}9 €;")
    rows[10:10] = [rows[3], "R9-01;;2;1,00;ohne Foto", "R9-02;Fotos\\Regal 9\\Fach 02.jpg;1;9,99;"]
    rows.append("R9-03;Fotos\\Regal 1\\Fach 01.jpg;zwei;2,50;")
    text = "\r\n".join(["Bestand, Halle 1;;;;", ";;;;", "Fach;Bild;Soll-Menge;Stückpreis;Bemerkung", *rows, ""])
    (folder / "Bestand.csv").write_bytes(text.encode("cp1252"))
    write_text(folder / "columns.yaml", COLUMNS)
    print(f"{folder}: {BINS} photographs, Bestand.csv and columns.yaml")


if __name__ == "__main__":
    main()
