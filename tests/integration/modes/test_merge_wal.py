"""What a merge writes: little, where little has changed."""

from collections.abc import Callable, Iterator

import pytest

import copypipe
from plugins.databases import Database

DAY = "2018-04-29"
COLUMNS = "id bigint PRIMARY KEY, name text, email text, score numeric, created_at timestamptz"
ROWS = f"""
SELECT g, 'name ' || g, md5(g::text) || '@example.com', g / 7.0,
       '{DAY}'::timestamptz + g % 86400 * interval '1 second'
  FROM generate_series(1, {{}}) AS g
"""
# As it is commonly written: what has not changed is updated too.
COMMON = """
INSERT INTO public.common SELECT * FROM pg_temp.staged
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email,
        score = excluded.score, created_at = excluded.created_at
"""


def written(dest: Database, act: Callable[[], object]) -> int:
    """Return the bytes of WAL that it takes right behind a checkpoint."""
    dest.execute("CHECKPOINT")
    before = dest.scalar("SELECT pg_current_wal_insert_lsn()::text")
    act()
    return int(
        dest.scalar("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s::pg_lsn)", [before])
    )


# Right behind a checkpoint each page that is touched is written whole, whatever changed in it. Rows
# that changed here and there touch many pages and more pages of indexes, so most of the gain is
# lost then; it is all there where pages were written before.
WHOLE_PAGES = {"on": 0.3, "off": 0.1}


@pytest.fixture
def whole_pages(kept_dest: Database, request: pytest.FixtureRequest) -> Iterator[str]:
    kept_dest.execute(f"ALTER SYSTEM SET full_page_writes = {request.param}")
    kept_dest.execute("SELECT pg_reload_conf()")
    yield request.param
    kept_dest.execute("ALTER SYSTEM RESET full_page_writes")
    kept_dest.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("whole_pages", WHOLE_PAGES, indirect=True)
@pytest.mark.parametrize(
    "rows", [30_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
@pytest.mark.one_of(2)
def test_a_merge_of_what_has_hardly_changed_writes_little(
    kept_source: Database,
    kept_dest: Database,
    whole_pages: str,
    rows: int,
    record_property: Callable[[str, object], None],
) -> None:
    source, dest = kept_source, kept_dest
    source.execute(
        f"CREATE TABLE public.users ({COLUMNS}); INSERT INTO public.users {ROWS.format(rows)};"
        # One in a hundred, side by side as new rows are and here and there as old ones.
        f"UPDATE public.users SET name = 'changed' WHERE id % 200 = 0 OR id > {rows * 0.995}"
    )
    for table in ("users", "common"):
        dest.execute(
            f"CREATE TABLE public.{table} ({COLUMNS}); CREATE INDEX ON public.{table} (created_at);"
            f"INSERT INTO public.{table} {ROWS.format(rows)}"
        )
    dest.execute("VACUUM (FREEZE, ANALYZE) public.users")
    dest.execute("VACUUM (FREEZE, ANALYZE) public.common")
    copypipe.copy("public.users", source=source.dsn, dest=dest.dsn, day=DAY, mode="merge")
    dest.execute(f"DELETE FROM public.users; INSERT INTO public.users {ROWS.format(rows)}")
    dest.execute("VACUUM (FREEZE, ANALYZE) public.users")
    dest.execute("DROP TABLE IF EXISTS pg_temp.staged")
    dest.execute("CREATE TEMPORARY TABLE staged AS TABLE public.common")
    dest.execute("UPDATE staged SET name = 'changed' WHERE id % 100 = 0; ANALYZE staged")
    done = []

    ours = written(
        dest,
        lambda: done.append(
            copypipe.copy("public.users", source=source.dsn, dest=dest.dsn, day=DAY, mode="merge")
        ),
    )
    common = written(dest, lambda: dest.execute(COMMON))

    assert (done[0].rows, done[0].inserted) == (rows, 0)
    assert 0 < done[0].updated <= rows * 0.011
    told = f"{rows} rows, whole pages {whole_pages}: {ours} of {common}, {ours / common:.3f}"
    record_property("wal", told)
    assert ours <= WHOLE_PAGES[whole_pages] * common, told
