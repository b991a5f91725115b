"""What a worker leaves for the next one of its directory."""

import os

from obuilder.cluster.journal import Journal


def test_the_next_one_knows_who_is_dead_and_which_tickets_they_had(tmp_path) -> None:
    first = Journal(str(tmp_path), "one")
    assert (first.dead, first.left) == (frozenset(), {})
    first.hold("a", "$JS.ACK.1")
    first.hold("b", "$JS.ACK.2")
    first.hold("b", "$JS.ACK.3")  # delivered again
    first.hold("c", "$JS.ACK.4")
    first.drop("c")
    first.drop("c")
    open(tmp_path / "tickets" / "d", "w").close()  # killed between two calls
    second = Journal(str(tmp_path), "two")
    assert (second.dead, second.left) == ({"one"}, {"a": "$JS.ACK.1", "b": "$JS.ACK.3"})
    for job in second.left:
        second.drop(job)
    third = Journal(str(tmp_path), "three")
    assert (third.dead, third.left) == ({"one", "two"}, {})


def test_it_does_not_grow_for_ever(tmp_path) -> None:
    for number in range(100):
        last = Journal(str(tmp_path), f"s{number}")
    assert "s98" in last.dead
    assert "s10" not in last.dead
    assert os.path.getsize(tmp_path / "sessions") < 200
