"""The part ``fetch.table`` of ``params.yaml``: how the columns of a table as source are called."""

from typing import Literal

from bintally.section import Section, Text


class Table(Section):
    """The columns of a table as source: CSV, JSON Lines or Parquet, a row for each photograph."""

    photograph: Text
    """Path of the photograph from the table's folder on, or s3://bucket/key."""
    count: Text
    """How many items the bin should hold; may be missing where its items are listed."""
    id: Text
    """Id of the photograph; made from the name or path of its file where there is none."""
    bin: Text
    """The bin: photographs of one bin are one group; each is its own if there is no such column."""
    time: Text
    """When the photograph was taken; only kept."""
    location: Text
    """Where the bin is, for the count sheet."""
    value: Text
    """Value of one item, in any currency: of a product, or else of each item of the photograph's row."""
    items: Text
    """The bin's products as JSON: [{"product": "B00…", "quantity": 2}, …] or {"B00…": 2, …}."""
    items_file: Text | None
    """A second table of the bins' products, from the first one's folder on: a row for each, with the photograph's id or
    path or the bin, and what follows; rows of one product in one bin are added up."""
    product: Text
    """Key of a product, such as an ASIN or EAN."""
    quantity: Text
    """How many of it."""
    name: Text
    """Name of the product."""
    length: Text
    """Length of one item, in `fetch.table.length_unit`."""
    width: Text
    """Width."""
    height: Text
    """Height."""
    weight: Text
    """Weight, in `fetch.table.weight_unit`."""
    length_unit: Literal["mm", "cm", "m", "in", "ft"]
    """Unit of lengths."""
    weight_unit: Literal["g", "kg", "oz", "lb"]
    """Unit of weights."""
