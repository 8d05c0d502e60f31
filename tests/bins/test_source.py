"""What `fetch.source` may be, and how it is opened."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from bintally.bins.folder import FolderSource
from bintally.bins.s3 import S3Source
from bintally.bins.source import open_source
from bintally.errors import UserError
from s3_stub import fetch_params


def test_a_bucket_and_a_folder_are_opened(tmp_path: Path) -> None:
    assert isinstance(open_source(fetch_params(tmp_path)), FolderSource)
    for name in ("s3://b", "s3://b/", "s3://my.bucket-1/a b/c#d?e"):
        assert isinstance(open_source(fetch_params(name)), S3Source)


def test_a_folder_that_does_not_exist_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"fetch\.source: '{tmp_path}/nowhere'.* nor an existing folder"):
        open_source(fetch_params(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "source",
    ["S3://b", "s3:/b", "s3://", "s3://a b/c", "s3://b//c", "s3://b/../c", "s3://b/./c", "file:///data", "s3://b?c",
     "https://b.s3.amazonaws.com", "~/bins", " bins", "bins ", "s3://b/c\n", "bins\0"],
)  # fmt: skip
def test_a_source_that_would_not_mean_what_it_says_is_refused(source: str) -> None:
    with pytest.raises(ValidationError, match=r"fetch\.source: .*(must|remove)"):
        fetch_params(source)


@pytest.mark.parametrize(
    "endpoint",
    ["http://a:0", "http://a:65536", "http://a:x", "http://me:pass@a", "http://a#b", "http://a?b", "ftp://a"],
)
def test_an_endpoint_that_is_more_than_a_server_is_refused(endpoint: str) -> None:
    with pytest.raises(ValidationError, match=r"fetch\.endpoint: .* must be of the form http://host:port"):
        fetch_params("s3://b", endpoint)
    assert fetch_params("s3://b", "https://[::1]:8333/").endpoint


def test_a_region_is_a_part_of_a_host_name() -> None:
    with pytest.raises(ValidationError, match="region"):
        fetch_params("s3://b", region="eu-west-1.example.org/")
