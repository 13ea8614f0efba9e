"""What users and scripts see of an error: its three parts, its exit code, its way to a log."""

import copy
import inspect
import pickle
import signal

import pytest

from copypipe import errors
from copypipe.errors import (
    EXIT_CODES,
    MESSAGE_CHARACTERS,
    PARTLY_DONE,
    CopypipeError,
    Interrupted,
    printable,
)

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, CopypipeError)
]


def test_str_has_the_three_parts_on_lines_of_their_own() -> None:
    error = CopypipeError("it failed", detail="This is why.", hint="Do that.")

    assert str(error) == "ERROR:  it failed\nDETAIL:  This is why.\nHINT:  Do that."


def test_str_leaves_out_the_parts_that_are_missing() -> None:
    assert str(CopypipeError("it failed")) == "ERROR:  it failed"
    assert str(CopypipeError("it failed", hint="Do that.")) == "ERROR:  it failed\nHINT:  Do that."


def test_no_part_of_an_error_can_look_like_another_line_or_move_the_cursor() -> None:
    forged = 'column "a\nERROR:  all is lost\x1b[2J"'

    error = CopypipeError(forged, detail=forged, hint=forged)

    assert len(str(error).splitlines()) == 3
    assert "\x1b" not in str(error)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("clone", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301 - our own bytes
def test_errors_cross_processes_whole(cls, clone) -> None:
    error = cls("it failed", detail="Why.", hint="Do.", side="dest", sqlstate="23505")

    again = clone(error)

    assert type(again) is cls
    assert vars(again) == vars(error)
    assert str(again) == str(error)


def test_every_exit_code_is_documented_once() -> None:
    codes = [code for code, _, _ in EXIT_CODES]
    raised = {cls.exit_code for cls in CLASSES}
    signals = {Interrupted(number).exit_code for number in (signal.SIGHUP, 2, signal.SIGTERM)}

    assert codes == sorted(set(codes))
    assert set(codes) == {0, PARTLY_DONE} | raised | signals
    assert 255 not in codes  # xargs would stop its loop


@pytest.mark.parametrize("cls", CLASSES)
def test_only_what_may_pass_by_itself_is_retryable(cls) -> None:
    (again,) = [again for code, _, again in EXIT_CODES if code == cls.exit_code]

    assert cls.retryable == (cls.exit_code in (5, 11))
    if cls.retryable:
        assert again in ("yes", "later")


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    lines = inspect.getdoc(errors).splitlines()
    drawn = {
        words[0]: int(next(word for word in words if word.isdigit()))
        for line in lines
        if (words := line.strip(" |`-").split()) and hasattr(errors, words[0]) and len(words) > 1
        if words[0] not in ("Interrupted",)
    }

    assert drawn == {cls.__name__: cls.exit_code for cls in CLASSES}


def test_interrupted_is_not_swallowed_by_handlers_of_errors() -> None:
    assert not issubclass(Interrupted, Exception)
    assert (Interrupted(signal.SIGTERM).exit_code, str(Interrupted(2))) == (143, "SIGINT")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a plain text", "a plain text"),
        ("two\nlines\r\n\tand  blanks ", "two lines and blanks"),
        ("\x1b[31mred\x1b[0m\x07", "\ufffd[31mred\ufffd[0m\ufffd"),
        ("paragraph\u2029separator", "paragraph separator"),
        ("right-to-left \u202eoverride", "right-to-left \ufffdoverride"),
        ("grüße, 你好, مرحبا", "grüße, 你好, مرحبا"),
        ("", ""),
    ],
)
def test_printable_is_one_line_without_control_characters(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_printable_caps_a_long_text() -> None:
    assert printable("x" * MESSAGE_CHARACTERS) == "x" * MESSAGE_CHARACTERS
    shown = printable("x" * 100_000)
    assert shown.endswith("xxx...")
    assert len(shown) <= MESSAGE_CHARACTERS
