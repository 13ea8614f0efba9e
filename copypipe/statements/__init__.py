"""Every SQL text that is sent, a file a noun, as `psycopg.sql.Composed`.

Identifiers and literals are quoted by the connection that executes the text, never by hand: the
rules depend on its encoding and settings. Our own catalog queries run with an empty search_path
or name pg_catalog, so that no object of a user's schema can take the place of a built-in one
(CVE-2018-1058).
"""

from __future__ import annotations

from psycopg.sql import Composed

Statement = Composed
"""A text with its identifiers and literals apart, until a connection quotes them."""
