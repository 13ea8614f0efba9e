"""Privileges of roles: the GRANT that gives one, and whether a role has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal as Choice

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal


@dataclass(frozen=True, slots=True)
class Privilege:
    """One thing that a role may do."""

    name: str
    """PostgreSQL's word for it; of a membership, the role in which it is."""
    on: Choice["database", "schema", "table", "sequence", "role"]
    object: tuple[str, ...] = ()
    """The name of what it is on, schema first."""
    columns: tuple[str, ...] = ()
    """The columns to which it is limited; none for the whole."""
    gives: str | None = None
    """What it is good for, where a copy works without it."""


def grant(privilege: Privilege, role: str) -> Composed:
    """Give a role a privilege."""
    if privilege.on == "role":
        return SQL("GRANT {} TO {}").format(Identifier(privilege.name), Identifier(role))
    columns: Composable = SQL("")
    if privilege.columns:
        names = SQL(", ").join(map(Identifier, privilege.columns))
        columns = SQL(" ({})").format(names)
    return SQL("GRANT {}{} ON {} {} TO {}").format(
        SQL(privilege.name),
        columns,
        SQL(privilege.on.upper()),
        Identifier(*privilege.object),
        Identifier(role),
    )


def held(privileges: Sequence[Privilege], role: str) -> Composed:
    """Ask which of these a role has, by whatever way: one column each."""
    return SQL("SELECT {} FROM pg_catalog.pg_roles r WHERE r.rolname = {}").format(
        SQL(", ").join(map(_held, privileges)), Literal(role)
    )


def _held(privilege: Privilege) -> Composed:
    if privilege.on == "role":
        return SQL("pg_catalog.pg_has_role(r.oid, {}, 'USAGE')").format(Literal(privilege.name))
    if privilege.columns:
        return SQL(
            """
            (SELECT bool_and(pg_catalog.has_column_privilege(r.oid, {}, a.attnum, {}))
               FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = {} AND a.attname = ANY ({}::text[]) AND NOT a.attisdropped)
            """
        ).format(
            _oid(privilege.object),
            Literal(privilege.name),
            _oid(privilege.object),
            Literal(list(privilege.columns)),
        )
    if privilege.on in ("table", "sequence"):
        of: Composable = _oid(privilege.object)
    else:
        of = Literal(privilege.object[0])
    return SQL("pg_catalog.{}(r.oid, {}, {})").format(
        SQL(f"has_{privilege.on}_privilege"), of, Literal(privilege.name)
    )


def _oid(name: tuple[str, ...]) -> Composed:
    # A cast to regclass would ask for USAGE on the schema.
    return SQL(
        """(SELECT c.oid FROM pg_catalog.pg_class c
                      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                     WHERE n.nspname = {} AND c.relname = {})"""
    ).format(*map(Literal, name))


def current_role() -> Composed:
    """Ask who the session is."""
    return SQL("SELECT current_user::text").format()


def database() -> Composed:
    """Ask which database it is."""
    return SQL("SELECT pg_catalog.current_database()::text").format()


def role(name: str, oid: int) -> Composed:
    """Ask what a role is, seen from a table; no row where there is none.

    Row security applies to all but superusers, BYPASSRLS, and owners unless it is FORCEd.
    """
    return SQL(
        """
        SELECT pg_catalog.has_database_privilege(
                   'public', pg_catalog.current_database(), 'CONNECT') AS all_connect,
               r.rolsuper,
               c.relrowsecurity AND NOT (r.rolsuper OR r.rolbypassrls
                   OR (pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE')
                       AND NOT c.relforcerowsecurity)) AS row_security
          FROM pg_catalog.pg_roles r
          JOIN pg_catalog.pg_class c ON c.oid = {}
         WHERE r.rolname = {}
        """
    ).format(Literal(oid), Literal(name))


def sequences(oid: int, columns: Sequence[str]) -> Composed:
    """Find the sequences that the defaults of these columns draw from; nextval() takes UPDATE too.

    An identity's is no default, and needs no right.
    """
    return SQL(
        """
        SELECT DISTINCT n.nspname::text, s.relname::text,
               pg_catalog.has_sequence_privilege(s.oid, 'USAGE, UPDATE') AS may_draw
          FROM pg_catalog.pg_attrdef d
          JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
          JOIN pg_catalog.pg_depend p
            ON p.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND p.objid = d.oid
           AND p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
          JOIN pg_catalog.pg_class s ON s.oid = p.refobjid AND s.relkind = 'S'
          JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
         WHERE d.adrelid = {} AND a.attname = ANY ({}::text[])
         ORDER BY 1, 2
        """
    ).format(Literal(oid), Literal(list(columns)))
