"""Selection of the tests that a change touches."""

from __future__ import annotations

import pytest

from tests.support.quick import ALWAYS, SLOW, read_tests, select

TESTS = {
    **dict.fromkeys(ALWAYS, ""),
    "tests/run/test_events.py": "from tests.support import workers, ranks",
    "tests/run/test_view.py": "from tests.support.story import PLAN",
    "tests/run/tracking/test_feeder.py": "from tests.support.story_lines import PLAN",
    "tests/training/test_resume.py": "from tests.support.story import PLAN",
    "tests/training/test_state.py": "",
    "tests/ui/test_panel.py": "",
    "tests/faults/test_kills.py": "from tests.support import workers",
    "tests/test_intervals.py": "",
    "tests/test_website.py": "",
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("dpo_cli/run/events.py", {"tests/run/test_events.py"}),
        ("dpo_cli/run/tracking/feeder.py", {"tests/run/tracking/test_feeder.py"}),
        ("dpo_cli/ui/terminal/panel.py", {"tests/ui/test_panel.py"}),
        ("dpo_cli/intervals.py", {"tests/test_intervals.py"}),
        # A slow test runs if it changed, or if the module that it mirrors changed.
        ("dpo_cli/training/trainer.py", {"tests/training/test_state.py"}),
        ("dpo_cli/training/resume.py", {"tests/training/test_resume.py"}),
        ("tests/training/test_resume.py", {"tests/training/test_resume.py"}),
        ("tests/faults/test_kills.py", {"tests/faults/test_kills.py"}),
        ("tests/faults/conftest.py", set()),
        # Helpers run the fast tests that import them.
        ("tests/support/story.py", {"tests/run/test_view.py"}),
        ("tests/support/workers.py", {"tests/run/test_events.py"}),
        ("tests/ui/snapshots/x.txt", {"tests/ui/test_panel.py"}),
        ("dpo_cli/errors.py", set()),
        ("README.md", set()),
        ("docs/data.md", {"tests/test_website.py"}),
        ("website/theme/stylesheets/site.css", {"tests/test_website.py"}),
        ("tests/training/test_deleted.py", {"tests/training/test_state.py"}),
    ],
)
def test_selection(changed: str, expected: set[str]) -> None:
    assert set(select([changed], TESTS)) == expected | set(ALWAYS)


def test_rules_always_run() -> None:
    assert select([], TESTS) == sorted(ALWAYS)


def test_slow_files_exist() -> None:
    tests = read_tests()
    for slow in SLOW:
        assert any(test.startswith(slow) for test in tests), slow
