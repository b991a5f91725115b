"""Users that a spec may name for its steps."""

import pytest

from program import Program


@pytest.mark.needs("root", "overlay")
@pytest.mark.parametrize(
    ("user", "message"),
    [
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


@pytest.mark.needs("root", "overlay", "crun")
@pytest.mark.parametrize("op", ['(run (shell "id"))', "(copy (src obuilder.spec) (dst /x))"])
def test_a_name_is_looked_up_in_the_root(program: Program, op: str) -> None:
    program.spec(
        '(run (shell "echo builder:x:7:8::/:/bin/sh >> /etc/passwd"))',
        "(user (name builder))",
        op,
        "(user (uid 0) (gid 0))",
        '(run (shell "id; stat -c %u:%g /x || true"))',
    )
    out = program.ok("build")
    assert ("uid=7(builder) gid=8" if "run" in op else "\n7:8\n") in out
    program.spec("(user (name nobody-here))", op)
    done = program.run("build")
    assert done.status == 2
    assert "there is no user 'nobody-here' in this root's /etc/passwd" in done.err


@pytest.mark.needs("root", "overlay", "crun", "runc")
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_home_is_what_the_image_says_whatever_the_runtime(program: Program, runtime: str) -> None:
    say = '(run (shell "echo home is $HOME"))'
    program.spec(
        say,
        f"(user (uid 7) (gid 7)) {say}",
        "(user (uid 0) (gid 0))",
        '(run (shell "echo x:x:7:7::/somewhere/else: >> /etc/passwd"))',
        f"(user (uid 7) (gid 7)) {say}",
        f"(env HOME /given) {say}",
    )
    out = program.ok("build", f"--runtime={runtime}")
    homes = [
        line.removeprefix("home is ") for line in out.splitlines() if line.startswith("home is")
    ]
    assert homes == ["/root", "/", "/somewhere/else", "/given"]
