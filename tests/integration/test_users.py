"""Users that a spec may name for its steps."""

import pytest

from program import Program


@pytest.mark.needs("root", "overlay")
@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("(name builder)", "takes users by number"),
        ("(uid 65536) (gid 0)", "there is no id 65536"),
        ("(uid 0) (gid 70000)", "there is no id 70000"),
    ],
)
@pytest.mark.parametrize("op", ['(run (shell "id"))', "(copy (src obuilder.spec) (dst /x))"])
def test_a_user_that_steps_cant_be_is_refused_before_anything_runs(
    program: Program, user: str, message: str, op: str
) -> None:
    program.spec('(run (shell "echo ran"))', f"(user {user})", op)
    done = program.run("build")
    assert done.status == 2
    assert "ran" not in done.out
    assert message in done.err
