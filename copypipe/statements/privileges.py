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
    on: Choice["database", "schema", "table", "sequence", "tablespace", "role"]
    object: tuple[str, ...] = ()
    """The name of what it is on, schema first."""
    columns: tuple[str, ...] = ()
    """The columns to which it is limited; none for the whole."""
    gives: str | None = None
    """What it is good for, where a copy works without it."""
    to: str | None = None
    """Who needs it, if not the role itself: the owner of a table."""


def grant(privilege: Privilege, role: str) -> Composed:
    """Give a role a privilege, or whoever else needs it."""
    role = privilege.to or role
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
    who: Composable = SQL("r.oid")
    if privilege.to is not None:
        who = SQL("{}::name").format(Literal(privilege.to))
    if privilege.on == "role":
        return SQL("pg_catalog.pg_has_role({}, {}, 'USAGE')").format(who, Literal(privilege.name))
    if privilege.columns:
        return SQL(
            """
            (SELECT bool_and(pg_catalog.has_column_privilege({}, {}, a.attnum, {}))
               FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = {} AND a.attname = ANY ({}::text[]) AND NOT a.attisdropped)
            """
        ).format(
            who,
            _oid(privilege.object),
            Literal(privilege.name),
            _oid(privilege.object),
            Literal(list(privilege.columns)),
        )
    if privilege.on in ("table", "sequence"):
        of: Composable = _oid(privilege.object)
    else:
        of = Literal(privilege.object[0])
    return SQL("pg_catalog.{}({}, {}, {})").format(
        SQL(f"has_{privilege.on}_privilege"), who, of, Literal(privilege.name)
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


def role(name: str, oid: int | None) -> Composed:
    """Ask what a role is, seen from a table or from none; no row where there is no such role.

    Row security applies to all but superusers, BYPASSRLS, and owners unless it is FORCEd.
    """
    return SQL(
        """
        SELECT pg_catalog.has_database_privilege(
                   'public', pg_catalog.current_database(), 'CONNECT') AS all_connect,
               r.rolsuper,
               coalesce(c.relrowsecurity AND NOT (r.rolsuper OR r.rolbypassrls
                   OR (pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE')
                       AND NOT c.relforcerowsecurity)), false) AS row_security
          FROM pg_catalog.pg_roles r
          LEFT JOIN pg_catalog.pg_class c ON c.oid = {}
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


def swapped(oid: int) -> Composed:
    """Ask who owns a table and, before it, the one that it is a partition of: schema, owner,
    whether that is a superuser, and whether it is the table itself.
    """
    return SQL(
        """
        SELECT n.nspname::text, o.rolname::text, o.rolsuper, c.oid = {oid} AS itself
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_catalog.pg_roles o ON o.oid = c.relowner
         WHERE c.oid = {oid}
            OR c.oid IN (SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid = {oid})
         ORDER BY itself
        """
    ).format(oid=Literal(oid))


def tablespaces(oid: int) -> Composed:
    """Ask in which tablespaces a table and its indexes lie, but for the database's own."""
    return SQL(
        """
        SELECT DISTINCT s.spcname::text
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_tablespace s ON s.oid = c.reltablespace
         WHERE c.oid = {oid} OR c.oid IN (SELECT i.indexrelid FROM pg_catalog.pg_index i
                                           WHERE i.indrelid = {oid})
         ORDER BY 1
        """
    ).format(oid=Literal(oid))


def referenced(oid: int) -> Composed:
    """Ask at which columns of which tables a table's foreign keys point."""
    return SQL(
        """
        SELECT DISTINCT n.nspname::text, c.relname::text,
               (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum)
                  FROM pg_catalog.pg_attribute a
                 WHERE a.attrelid = k.confrelid AND a.attnum = ANY (k.confkey)) AS columns
          FROM pg_catalog.pg_constraint k
          JOIN pg_catalog.pg_class c ON c.oid = k.confrelid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE k.conrelid = {} AND k.contype = 'f' ORDER BY 1, 2
        """
    ).format(Literal(oid))
