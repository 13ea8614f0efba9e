"""How each fault is made: a rule for a proxy, or an act at a message or at the start of a phase."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

from faults.phases import Course
from faults.scenes import KEEPALIVE_SECONDS, Scene
from plugins import proxy as proxies
from plugins.proxy import Cut, Direction, Frame, Proxy, Rule

ENDINGS = ("fin", "rst", "hole")
# Faults for which the servers are needed alone.
ALONE = ("kill -9", "stop")
SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP")

Act = Callable[["Trial"], None]


@dataclass
class Trial:
    """One copy under one fault: who takes part in it."""

    scene: Scene
    course: Course
    side: str
    proxies: dict[str, Proxy]
    fell: str | None = None
    """The phase in which the fault was made."""
    pid: int | None = None
    """copypipe's own, where it is a process."""

    @property
    def proxy(self) -> Proxy:
        return self.proxies[self.side]

    @property
    def backend(self) -> int | None:
        return self.course.pids.get(self.side)

    def fall(self) -> None:
        """Take note that the fault was made."""
        if self.fell is None:
            self.fell = self.course.phase


# --- where ----------------------------------------------------------------------------------------


def at_message(trial: Trial, sender: Direction, number: int, what: str) -> Rule:
    """Make a fault at one message of the first connection."""
    do = _maker(trial, what)

    def rule(frame: Frame) -> bytes | None:
        here = frame.link == 1 and frame.sender == sender and frame.number == number
        if here and _possible(trial, what):
            trial.fall()
            return do(frame)
        return None

    return rule


def at_phase(trial: Trial, phase: str, what: str) -> Rule:
    """Make a fault at the first message in a phase where that can be, once.

    Where a server dies behind COMMIT its answer is lost too.
    """
    do = _maker(trial, what)
    if phase == "after" and trial.side == "dest" and what in ALONE:
        do = _then_cut(do)

    def rule(frame: Frame) -> bytes | None:
        here = frame.link == 1 and trial.course.phase == phase
        if here and trial.fell is None and _possible(trial, what):
            trial.fall()
            return do(frame)
        return None

    return rule


def _possible(trial: Trial, what: str) -> bool:
    """Return whether there is already somebody to do it to."""
    if what in SIGNALS:
        return trial.pid is not None
    return what not in ACTS or trial.backend is not None


# --- what -----------------------------------------------------------------------------------------


def cut(trial: Trial, ending: str) -> Rule:
    """Cut the connection. A server behind a hole ends what it did for us after a while."""

    def rule(frame: Frame) -> None:
        if ending == "hole":
            threading.Timer(KEEPALIVE_SECONDS, trial.proxy.drop, [frame.link]).start()
        raise Cut(ending="dead" if ending == "gone" else ending)

    return rule


def acting(trial: Trial, act: Act) -> Rule:
    """Do something to a process, then hand the message on."""

    def rule(frame: Frame) -> None:
        act(trial)

    return rule


def terminate(trial: Trial) -> None:
    """End the server's process as an administrator does."""
    _ask(trial, "pg_terminate_backend")


def cancel(trial: Trial) -> None:
    """Cancel the statement as an administrator does."""
    _ask(trial, "pg_cancel_backend")


def _ask(trial: Trial, function: str) -> None:
    database = getattr(trial.scene, trial.side)
    if trial.backend is not None:
        database.scalar(f"SELECT {function}({trial.backend})")


def kill(trial: Trial) -> None:
    """Kill the server's process, which has the server restart itself."""
    if trial.backend is not None:
        os.kill(trial.backend, signal.SIGKILL)


def stop(trial: Trial) -> None:
    """Stop the whole server at once and start it again."""
    getattr(trial.scene, trial.side).server.restart("immediate")


def freeze(trial: Trial) -> None:
    """Let the server's process stand still for a while."""
    pid = trial.backend
    if pid is not None:
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(KEEPALIVE_SECONDS, _wake, [pid]).start()


def _wake(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def signalled(name: str) -> Act:
    """Send a signal to copypipe's own process."""

    def act(trial: Trial) -> None:
        if trial.pid is not None:
            os.kill(trial.pid, signal.Signals[name])

    return act


ACTS: dict[str, Act] = {
    "terminate": terminate,
    "cancel": cancel,
    "kill -9": kill,
    "stop": stop,
    "freeze": freeze,
    **{name: signalled(name) for name in SIGNALS},
}


def _then_cut(do: Rule) -> Rule:
    def rule(frame: Frame) -> None:
        do(frame)
        raise Cut(ending="fin")

    return rule


def _maker(trial: Trial, what: str) -> Rule:
    """Return what makes the fault at its place."""
    if what in (*ENDINGS, "gone"):
        return cut(trial, what)
    return acting(trial, ACTS[what])


# --- streams that end early -----------------------------------------------------------------------


def cut_at_byte(trial: Trial, count: int) -> Rule:
    """Cut the source's stream after so many bytes of data."""
    rule = proxies.cut_after(count)

    def falling(frame: Frame) -> bytes | None:
        try:
            return rule(frame) if frame.link == 1 else None
        except Cut:
            trial.fall()
            raise

    return falling


def curtailed(trial: Trial, rows: int) -> Rule:
    """Leave out what follows after some rows, the trailer too; count what is left."""
    begun = False

    def rule(frame: Frame) -> bytes | None:
        nonlocal begun
        if frame.is_data and frame.link == 1 and frame.rows >= rows + (rows == 0):
            begun = True
            trial.fall()
            return b""
        if begun and frame.sender == "server" and frame.body.startswith(b"COPY "):
            return proxies.said(b"C", b"COPY %d\0" % rows)
        return None

    return rule


def rolls_back(trial: Trial) -> Rule:
    """Have COMMIT answered as in an aborted transaction."""
    rule = proxies.roll_back_instead()

    def falling(frame: Frame) -> bytes | None:
        instead = rule(frame)
        if instead is not None:
            trial.fall()
        return instead

    return falling


def failing(trial: Trial) -> Rule:
    """Make nothing; take note of the error that the server itself makes, once there is work."""

    def rule(frame: Frame) -> None:
        errs = frame.link == 1 and frame.sender == "server" and frame.kind == b"E"
        if errs and trial.course.phase != "plan":  # where errors tell whether a text is SQL
            trial.fall()

    return rule
