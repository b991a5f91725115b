"""What macOS is asked to do: command lines, made from values alone."""

from obuilder.backends.sandboxes.accounts import Account
from obuilder.backends.sandboxes.users_macos import MacSystem, added, as_user, prefix_of, removed


def test_a_user_is_made_hidden_with_a_group_of_its_own_and_without_a_password() -> None:
    lines = [" ".join(words) for words in added("obuilder-1", "obuilder-ab-1", 601)]
    assert lines[0] == "dscl . -create /Groups/obuilder-1"
    assert "dscl . -create /Groups/obuilder-1 PrimaryGroupID 601" in lines
    for field in (
        "UniqueID 601", "PrimaryGroupID 601", "UserShell /bin/bash", "NFSHomeDirectory /Users/builder",
        "IsHidden 1", "RealName obuilder-ab-1",
    ):  # fmt: skip
        assert f"dscl . -create /Users/obuilder-1 {field}" in lines
    assert not any("assword" in line for line in lines)
    # The group is there before the user that is in it, the record before what is written to it.
    assert lines.index("dscl . -create /Users/obuilder-1") == 2


def test_a_user_is_removed_with_its_group() -> None:
    assert removed("obuilder-1") == [
        ["dscl", ".", "-delete", "/Users/obuilder-1"],
        ["dscl", ".", "-delete", "/Groups/obuilder-1"],
    ]


def test_a_step_runs_in_its_users_own_session_with_exactly_its_environment() -> None:
    account = Account("obuilder-2", 602, 602, "")
    env = {"HOME": "/Users/builder", "A": "b c; $d"}
    words = as_user(account, env, "/Users/builder/a b", ("bash", "-c", "make 'x y'"))
    assert words[:3] == ["launchctl", "asuser", "602"]
    assert words[3:8] == ["sudo", "-n", "-u", "obuilder-2", "--"]
    assert words[8:12] == ["env", "-i", "HOME=/Users/builder", "A=b c; $d"]
    # Nothing of the step's is in the shell's text: no quoting is needed, and none can fail.
    assert words[12:15] == ["/bin/sh", "-c", 'cd "$0" && exec "$@"']
    assert words[15:] == ["/Users/builder/a b", "bash", "-c", "make 'x y'"]


def test_the_prefix_is_where_homebrew_is() -> None:
    assert prefix_of("arm64") == "/opt/homebrew"
    assert prefix_of("x86_64") == "/usr/local"


def test_marks_that_keep_files_from_being_removed_are_taken_away() -> None:
    assert MacSystem().unlocked("/x") == ["chflags", "-R", "nouchg,noschg", "/x"]
