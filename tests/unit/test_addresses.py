"""Connection strings: libpq's forms are taken, and what cannot be used is never repeated."""

import pytest

from copypipe import addresses
from copypipe.errors import UsageError


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("postgresql://a,b/db", ","),
        ("postgresql://a,b:5433/db", ",5433"),
        ("postgresql://a:5432,b/db", "5432,"),
        ("host=a,b port=5432,5433", "5432,5433"),
        ("host=a", None),
    ],
)
def test_several_hosts_may_leave_ports_out(text: str, port: str | None) -> None:
    assert addresses.parse(text, "source").get("port") == port


@pytest.mark.parametrize(
    "text", ["postgresql://app:se/cret@h/db", "port=se", "postgresql://u:%zz@h", "hots=se"]
)
def test_what_cannot_be_used_is_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        addresses.parse(text, "dest")

    assert text not in str(caught.value)
    assert "cret" not in str(caught.value)
