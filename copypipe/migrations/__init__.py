"""Whole tables, once: what is missing is made, all rows are read in one snapshot, indexes follow.

One leader at the source holds the snapshot and the tables' definitions, one at the dest keeps other
runs away; both only say now and then that they are there. What is to be done is told in the ledger
of the dest in the transaction that makes the tables, and what is done with what was done, so that
any host can go on.
"""

from copypipe.migrations.options import Migrated, Moved, Options, Proposal, Proposed
from copypipe.migrations.run import Migration, propose

__all__ = ["Migrated", "Migration", "Moved", "Options", "Proposal", "Proposed", "propose"]
