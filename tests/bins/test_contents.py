"""What lies in bins by their records and corrections."""

from pathlib import Path

import pytest

from bintally.bins.contents import read_contents
from bintally.bins.products import listed_products
from bintally.bins.shards import write_shards
from bintally.errors import UserError
from small import bins


def test_contents_are_those_of_the_record_as_corrected(tmp_path: Path) -> None:
    listed = {one.id: one for one in bins() if len(listed_products(one.record)) >= 2}
    plain, named, unnamed = list(listed)[:3]
    write_shards(tmp_path / "bins", bins())
    first = listed_products(listed[named].record)[0]
    corrections = tmp_path / "corrections.csv"
    corrections.write_text(
        "id,count,product,quantity\n"
        f"{named},{listed[named].count + 1},{first.key},{first.quantity + 1}\n"
        f"{unnamed},{listed[unnamed].count + 1},,\n"
    )
    contents = list(read_contents(tmp_path / "bins", corrections, [plain, named, unnamed]))
    assert [one.is_known for one in contents] == [True, True, False]
    assert contents[0].products == listed_products(listed[plain].record)
    assert contents[1].products[0].quantity == first.quantity + 1
    assert [one.key for one in contents[2].products] == [one.key for one in listed_products(listed[unnamed].record)]


def test_without_corrections_all_is_as_recorded(tmp_path: Path) -> None:
    write_shards(tmp_path, bins())
    ids = [one.id for one in bins()]
    contents = list(read_contents(tmp_path, tmp_path / "corrections.csv", ids))
    assert all(one.is_known for one in contents)
    assert [sum(product.quantity for product in one.products) for one in contents] == [one.count for one in bins()]
    for wrong in ([*ids[:2], "none"], [ids[1], ids[0]]):
        with pytest.raises(KeyError, match=wrong[-1]):
            list(read_contents(tmp_path, tmp_path / "corrections.csv", wrong))
    (tmp_path / "bins-00000.tar").unlink()
    with pytest.raises(UserError, match="missing or truncated"):
        list(read_contents(tmp_path, tmp_path / "corrections.csv", ids))
