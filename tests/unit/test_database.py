"""The file of a store's index, where many open it at once."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from obuilder.engine.database import Database

AT_ONCE = 8


def test_a_new_one_may_be_opened_by_many_at_once(tmp_path) -> None:
    barrier = Barrier(AT_ONCE)

    def opened(directory: str) -> None:
        barrier.wait()
        Database(directory).close()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number in range(20):
            directory = tmp_path / str(number)
            directory.mkdir()
            for each in [pool.submit(opened, str(directory)) for _ in range(AT_ONCE)]:
                each.result()
