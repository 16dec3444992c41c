"""What the README promises; that its commands work is in test_docs."""

from commands import COMMANDS
from pages import ROOT, commands


def test_the_two_commands_are_targets_of_the_makefile():
    targets = (ROOT / "Makefile").read_text()
    assert [words for words in commands("README.md") if words[0] == "make"] == [
        ["make", "demo"],
        ["make", "test"],
    ]
    assert "\ndemo:" in targets and "\ntest:" in targets


def test_every_command_is_shown():
    words_of = [*commands("README.md"), *commands("README.md", "sh no-run")]
    shown = {words[1] for words in words_of if words[0] == "stages"}
    assert set(COMMANDS) - shown <= {"demo", "pretrain"}
    assert "make demo" in (ROOT / "README.md").read_text()


def test_edits_compose_as_it_says():
    assert "(0, 1, 2, 3, 5, 4, 6, 8, 9, 10, 11)" in (ROOT / "README.md").read_text()
    from robustness.schedules import clean, drop, swap

    assert swap(drop(clean(12), 7), 4) == (0, 1, 2, 3, 5, 4, 6, 8, 9, 10, 11)
