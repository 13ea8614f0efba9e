"""The faults, and how a copy may end after each: the matrix of fault and phase.

What is allowed is a set of exit codes; whatever the code, `Scene.complaint` demands that it is true
(0: new, 75: old or new, else old), that the ledger says the same, and that one more run makes the
dest equal.
"""

from __future__ import annotations

from faults.phases import ORDER

COPIED, FAILED, PASSING, REFUSED, UNKNOWN = 0, 1, 5, 6, 75
KILLED, HUP, INT, TERM = -9, 129, 130, 143

# Faults by name: what happens.
FAULTS = {
    "source fin": "the connection to the source is closed",
    "source rst": "the connection to the source is reset",
    "source hole": "nothing arrives any more from or at the source",
    "source terminate": "the source's process is terminated",
    "source cancel": "the source's statement is cancelled",
    "source kill -9": "the source's process is killed, and the server restarts itself",
    "source stop": "the source's server is stopped at once and started again",
    "source freeze": "the source's process stands still (SIGSTOP)",
    "source cut": "the stream of the source ends after some byte",
    "source curtailed": "the stream ends between two rows, as if it were whole",
    "source error": "the source fails at a row",
    "dest fin": "the connection to the dest is closed",
    "dest rst": "the connection to the dest is reset",
    "dest hole": "nothing arrives any more from or at the dest",
    "dest gone": "the dest is lost and cannot be reached again",
    "dest terminate": "the dest's process is terminated",
    "dest cancel": "the dest's statement is cancelled",
    "dest kill -9": "the dest's process is killed, and the server restarts itself",
    "dest stop": "the dest's server is stopped at once and started again",
    "dest freeze": "the dest's process stands still (SIGSTOP)",
    "dest error": "the dest refuses a row (a constraint, a trigger)",
    "dest late error": "a deferred constraint fails",
    "dest rolls back": "COMMIT is answered with ROLLBACK",
    "crash": "copypipe is killed (SIGKILL) at a place of its own code",
    "SIGKILL": "copypipe is killed (SIGKILL)",
    "SIGINT": "Ctrl-C",
    "SIGTERM": "copypipe is told to end",
    "SIGHUP": "the terminal hangs up",
}

_BEFORE = ORDER[: ORDER.index("commit")]
_LOST = frozenset({PASSING})
_DECIDED = frozenset({COPIED, PASSING})


def _since(phase: str) -> tuple[str, ...]:
    return ORDER[ORDER.index(phase) :]


def allowed(fault: str, phase: str, kind: str) -> frozenset[int]:
    """Return the exit codes with which a copy of that kind may end."""
    side, _, what = fault.partition(" ")
    if fault in ("crash", "SIGKILL"):
        return frozenset({KILLED, COPIED} if phase == "after" else {KILLED})
    if fault.startswith("SIG"):
        number = {"SIGINT": INT, "SIGTERM": TERM, "SIGHUP": HUP}[fault]
        decided = {COPIED} if phase in _since("record") else set()
        return frozenset({number} if phase in _BEFORE[:-1] else {number} | decided)
    if side == "source":
        return _of_source(what, phase, kind)
    return _of_dest(what, phase, kind)


def _of_source(what: str, phase: str, kind: str) -> frozenset[int]:
    if what == "curtailed" or what == "error":
        return frozenset({FAILED})
    if what == "cancel":
        # As a user's own wish it is not tried again. Where nothing runs, nothing is cancelled.
        return frozenset({FAILED, COPIED})
    if phase in _since("end"):
        return frozenset({COPIED})  # the source has said all that it had to say
    if kind == "retried":
        return frozenset({COPIED})
    if phase in ("lock", "clear") or (phase == "plan" and what == "terminate"):
        # Nothing is asked of it then, and later it is connected to once more. To be terminated
        # takes a moment.
        return _DECIDED
    # The last of the stream may be on its way when the fault comes.
    return _DECIDED if phase == "stream" or what in ("freeze", "hole") else _LOST


def _of_dest(what: str, phase: str, kind: str) -> frozenset[int]:
    if what in ("error", "late error", "rolls back"):
        return frozenset({FAILED})
    if what == "cancel":
        # COPY FROM is deaf to it while it waits for data; COMMIT cannot be cancelled.
        return frozenset({FAILED, COPIED})
    if what == "gone":
        if phase in _BEFORE:
            return _LOST
        return frozenset({COPIED} if phase == "after" else {UNKNOWN})
    if kind == "retried":
        return frozenset({COPIED})
    if kind == "bare" and what == "terminate" and phase == "record":
        return _DECIDED | {UNKNOWN}  # noticed when COMMIT is under way
    if phase in _BEFORE:
        # A frozen process or a lost packet is noticed after the phase may have gone by.
        return _DECIDED if what in ("freeze", "terminate") else _LOST
    if kind == "bare":
        return frozenset({COPIED, UNKNOWN})
    return _DECIDED


# How many faults a whole sweep makes at least in each cell where a fault can fall.
LEAST = 5

_SOURCE_SPEAKS = frozenset({"plan", "clear", "stream", "record"})
_WORKS = frozenset(ORDER) - {"after"}

# Where each fault can fall: the source says nothing while the dest takes locks, ends its COPY and
# commits; behind the end there is only a farewell.
_FALLS: dict[str, frozenset[str]] = {
    **dict.fromkeys((f for f in FAULTS if f.startswith("source")), _SOURCE_SPEAKS),
    **dict.fromkeys((f for f in FAULTS if f.startswith("dest")), _WORKS),
    **dict.fromkeys(
        ("dest fin", "dest rst", "dest hole", "dest stop", "dest kill -9"), frozenset(ORDER)
    ),
    **dict.fromkeys(("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP"), frozenset(ORDER)),
    **dict.fromkeys(("source cut", "source curtailed", "source error"), frozenset({"stream"})),
    "dest error": frozenset({"end"}),
    "dest late error": frozenset({"commit"}),
    "dest rolls back": frozenset({"commit"}),
    # No place of our own code lies between CopyDone and its answer, or between COMMIT and its own:
    # what was handed over right before arrives all the same.
    "crash": frozenset(ORDER) - {"end", "commit"},
}

# Only two kinds of copy are cancelled, at a message each there.
_FEWER = {("dest cancel", "end"): 2, ("dest cancel", "commit"): 2}


def least(fault: str, phase: str) -> int:
    """Return how many faults a whole sweep makes at least in that cell of the matrix."""
    return _FEWER.get((fault, phase), LEAST) if phase in _FALLS[fault] else 0
