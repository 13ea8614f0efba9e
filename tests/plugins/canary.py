"""A password that must never be seen: the test in whose output it appears fails."""

from collections.abc import Callable, Generator

import pytest

# In two parts, so that a traceback that quotes this line does not look like a leak.
CANARY = "canary-" + "S3cr3t"


def redacted(text: str) -> str:
    """Return `text` with the canary replaced, so that the report of a leak is not one itself."""
    return text.replace(CANARY, "[the canary password]")


@pytest.fixture(scope="session")
def no_canary() -> Callable[[str | bytes], None]:
    """Return a check for output that a test captured itself, which pytest's report lacks."""

    def check(output: str | bytes) -> None:
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        if CANARY in text:
            pytest.fail(f"the canary password leaked:\n{redacted(text)}")

    return check


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    failure = str(report.longrepr or "")
    # A report repeats the sections of the phases before it: each leak fails one phase only.
    sections = [section for section in report.sections if section[0].endswith(report.when)]
    leaks = [name for name, text in sections if CANARY in text]
    if CANARY in failure:
        leaks.append("failure text")
    if leaks:
        report.outcome = "failed"
        where = ", ".join(leaks)
        report.longrepr = f"the canary password leaked into: {where}\n{redacted(failure)}"
    report.sections = [(name, redacted(text)) for name, text in report.sections]
    return report
