"""Trees made to be hard to remove or to copy."""

import os
import resource
import threading

import pytest

from obuilder.system.files import copy_tree, remove_tree


def _nested(path, depth):
    os.mkdir(path)
    at = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        with open("file", "w", opener=lambda name, flags, at=at: os.open(name, flags, dir_fd=at)):
            pass
        os.mkdir("d", dir_fd=at)
        deeper = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    os.chmod(at, 0)
    os.close(at)


def test_a_tree_deeper_than_there_are_descriptors_is_removed(tmp_path):
    _nested(tmp_path / "tree", 2500)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    try:
        remove_tree(str(tmp_path / "tree"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert os.listdir(tmp_path) == []


def test_a_tree_too_deep_to_be_copied_is_told(tmp_path):
    _nested(tmp_path / "tree", 2500)
    with pytest.raises(OSError, match=r"nested too deeply|Too many open files"):
        copy_tree(str(tmp_path / "tree"), str(tmp_path / "copy"))
    for name in ("tree", "copy"):
        remove_tree(str(tmp_path / name))


def test_a_tree_that_two_remove_at_once_is_gone(tmp_path):
    for round_ in range(20):
        top = tmp_path / f"tree{round_}"
        for folder in range(20):
            os.makedirs(top / str(folder) / "deep")
            for file in range(20):
                (top / str(folder) / f"f{file}").touch()
        failed = []

        def remove(top=top, failed=failed):
            try:
                remove_tree(str(top))
            except OSError as error:
                failed.append(error)

        threads = [threading.Thread(target=remove) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert not top.exists()
