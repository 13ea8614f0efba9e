"""A day of users to copy, and what the tries of a copy leave behind."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

import copypipe
from copypipe import Transferred
from copypipe.events import Event
from plugins.command import no_backends
from plugins.databases import Database

DAY = "2018-04-29"
ROWS = 24


@dataclass
class Sides:
    """Both databases, with a day to copy over seven old rows."""

    source: Database
    dest: Database
    before: str = ""
    heard: list[Event] = field(default_factory=list)

    def copy(self, **options: Any) -> Transferred:
        sides = {"source": self.source.dsn, "dest": self.dest.dsn}
        chosen = {**sides, "day": DAY, "retry_delay": 0.01, "listener": self.hear, **options}
        return copypipe.copy("public.users", **chosen)

    def hear(self, event: Event) -> None:
        self.heard.append(event)

    def all_of(self, kind: type) -> list[Any]:
        return [event for event in self.heard if type(event) is kind]

    @property
    def tried(self) -> list[tuple[str, str | None, str | None]]:
        """How each attempt ended, in order: state, side, SQLSTATE."""
        return self.dest.fetch(
            "SELECT state, side, sqlstate FROM copypipe.attempt ORDER BY began_at, number"
        )

    @property
    def recorded(self) -> int:
        return self.dest.scalar("SELECT count(*) FROM copypipe.slice")

    def assert_old(self) -> None:
        no_backends(self.source, self.dest)
        assert self.dest.digest("public.users", "id") == self.before

    def assert_new(self) -> None:
        no_backends(self.source, self.dest)
        of_day = "SELECT * FROM public.users WHERE id / 1000000 = 1 ORDER BY id"
        assert self.dest.text(of_day) == self.source.text(of_day)
        assert self.dest.scalar("SELECT count(*) FROM public.users") == ROWS + 5


def raising(dest: Database, code: str, times: int) -> None:
    """Let the dest fail with a SQLSTATE, so many times; a sequence survives what is rolled back."""
    dest.execute(
        "CREATE SEQUENCE public.tries;"
        "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('public.tries') <= {times} THEN"
        f" RAISE EXCEPTION 'no luck' USING ERRCODE = '{code}'; END IF; RETURN NULL; END $$;"
        "CREATE TRIGGER fail BEFORE INSERT ON public.users FOR EACH STATEMENT"
        " EXECUTE FUNCTION public.fail()"
    )


def in_turn(*targets: str) -> Callable[[], psycopg.Connection]:
    """Return a callable that connects to one server after the other, and to the last one again."""
    following = itertools.chain(targets, itertools.repeat(targets[-1]))
    return lambda: psycopg.connect(next(following))
