"""`bintally errors`: a page of the test bins whose record the model finds least likely, to be looked at."""

import base64
import json
from html import escape
from pathlib import Path

from bintally.bins.shards import Entry, ShardReader, read_index
from bintally.faults import Fault
from bintally.files import read_csv, write_text
from bintally.page import document
from bintally.stages import paths

STYLE = """
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1rem}
article{border:1px solid #cbd5e0;border-radius:6px;overflow:hidden}
img{width:100%}
div{padding:.5rem .75rem}
ul{margin:.3rem 0;padding-left:1.1rem;font-size:13px}
table{border-collapse:separate;border-spacing:2px 0;width:100%;table-layout:fixed;text-align:center;font-size:13px}
td,th{padding:1px;text-align:center;border:0}
td.bars{height:3.5rem;vertical-align:bottom;padding:0}
td.bars i{display:block;background:#2b6cb0}
td.record i{background:#c05621}
th.record{color:#c05621}
"""


def write_errors_page(page: Path, number: int) -> None:
    """Write a page, self-contained, of the ``number`` test bins with the least probability of their record.

    It shows photographs and records, so it goes where the data may go. Raises Fault if there are no predictions.
    """
    if not paths.PREDICTIONS.is_file():
        raise Fault(f"{paths.PREDICTIONS} is not there: `dvc repro` makes it, `bintally pull` fetches it")
    rows = read_csv(paths.PREDICTIONS)
    rows.sort(key=lambda row: (float(row[f"p{row['count']}"]), row["id"]))
    entries = {entry.id: entry for entry in read_index(paths.BINS)}
    reader = ShardReader(paths.BINS)
    articles = "\n".join(_article(row, entries[row["id"]], reader) for row in rows[:number])
    body = (
        f"<h1>The {min(number, len(rows))} of {len(rows):,} test bins whose record the model finds least likely</h1>"
        f"<p>Bars: the probability of each count; in orange that of the record.</p><main>{articles}</main>"
    )
    write_text(page, document("Least likely records", body, STYLE))
    print(page)


def _article(row: dict[str, str], entry: Entry, reader: ShardReader) -> str:
    items = json.loads(reader.record(entry))["BIN_FCSKU_DATA"].values()
    listed = "".join(f"<li>{item['quantity']} × {escape(str(item.get('name'))[:90])}</li>" for item in items)
    shares = {name[1:]: float(value) for name, value in row.items() if name[0] == "p" and name[1:].isdecimal()}
    kinds = {count: "record" if count == row["count"] else "" for count in shares}
    bars = "".join(
        f'<td class="bars {kinds[count]}" title="{share:.1%}"><i style="height:{share * 3.5:.2f}rem"></i></td>'
        for count, share in shares.items()
    )
    labels = "".join(f'<th scope="col" class="{kinds[count]}">{count}</th>' for count in shares)
    picture = base64.b64encode(reader.image(entry)).decode()
    return (
        f'<article><img src="data:image/jpeg;base64,{picture}" alt="bin {escape(row["id"])}">'
        f"<div><b>{escape(row['id'])}</b>: record {row['count']}, model {row['most_probable']}, "
        f"set {row['low']}–{row['high']}, P(record) {shares[row['count']]:.1%}"
        f"<table><tr>{bars}</tr><tr>{labels}</tr></table><ul>{listed}</ul></div></article>"
    )
