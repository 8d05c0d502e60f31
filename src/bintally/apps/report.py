"""`bintally report`: a page of figures of the data, the split and the predictions."""

import argparse
from pathlib import Path

from bintally.errors import printable
from bintally.files import check_writable, write_text
from bintally.page import document

STYLE = """
.about{background:#fffaf0;border-left:5px solid #c05621;padding:.6rem 1rem;font-weight:bold}
section{margin-top:2.5rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1rem}
article{border:1px solid #cbd5e0;border-radius:6px;overflow:hidden}
article img{width:100%}
article div{padding:.5rem .75rem}
article ul{margin:.3rem 0;padding-left:1.1rem;font-size:13px}
article table{border-collapse:separate;border-spacing:2px 0;width:100%;table-layout:fixed;font-size:13px}
article td,article th{padding:1px;text-align:center;border:0}
td.bars{height:3.5rem;vertical-align:bottom;padding:0}
td.bars i{display:block;background:#2b6cb0}
td.record i{background:#c05621}
th.record{color:#c05621}
"""


def configure(parser: argparse.ArgumentParser) -> None:
    to = Path("exports/report.html")
    parser.add_argument("--to", type=Path, default=to, metavar="PAGE", help="default: %(default)s")
    help_line = "also compare what `bintally predict --to` wrote, FILE or the folder of parts, with the test bins"
    parser.add_argument("--since", type=Path, metavar="FILE", help=help_line)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the page, a single file. It shows photographs, so keep it where the data may be.

    Raises UserError if the page cannot be written, or as :func:`bintally.apps.collection.load_collection` and
    :func:`bintally.apps.since.read_answers` do.
    """
    from bintally.apps.collection import load_collection
    from bintally.apps.report_sections import report_sections

    check_writable(arguments.to)
    bins = load_collection()
    sections = "\n".join(report_sections(bins, arguments.since))
    body = f'<h1>The bins and the model</h1><p class="about">{bins.description()}</p>{sections}'
    write_text(arguments.to, document("The bins and the model", body, STYLE))
    print(printable(str(arguments.to)))
