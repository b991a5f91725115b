"""Caches of the tests' own: a registry with a password, a layout, a bucket of moto's S3 server."""

import json
import os
import re
import subprocess  # the server is no part of the program
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import obstore
import pytest
from obstore.store import S3Store

from registries import running

KINDS = ("registry", "layout", "s3")


class Cache(NamedTuple):
    """A cache: how it is named, and the variables that who uses it needs."""

    name: str
    variables: dict[str, str]


class Shelf:
    """Makes caches of every kind, each empty; servers are started once."""

    def __init__(self, directory: str, stack: ExitStack) -> None:
        self._directory, self._stack = directory, stack
        self._registry = self._s3 = ""

    @property
    def registry(self) -> str:
        """HOST:PORT of the registry, whose user is me, with the password word."""
        if not self._registry:
            self._registry = self._stack.enter_context(running(users={"me": "word"})).host
        return self._registry

    @property
    def s3(self) -> str:
        """The URL of the S3 server."""
        if not self._s3:
            self._s3 = self._stack.enter_context(moto())
        return self._s3

    def docker_config(self, *hosts: str) -> str:
        """A directory with a config of Docker's that knows the password at these hosts."""
        directory = os.path.join(self._directory, uuid.uuid4().hex)
        os.makedirs(directory)
        auths = {host: {"username": "me", "password": "word"} for host in hosts}
        with open(f"{directory}/config.json", "w") as file:
            json.dump({"auths": auths}, file)
        return directory

    def cache(self, kind: str) -> Cache:
        """A new one."""
        name = uuid.uuid4().hex
        if kind == "registry":
            config = self.docker_config(self.registry)
            return Cache(f"docker://{self.registry}/cache/{name}", {"DOCKER_CONFIG": config})
        if kind == "layout":
            return Cache(f"oci:{self._directory}/{name}", {})
        variables = {
            "AWS_ENDPOINT_URL": self.s3, "AWS_ACCESS_KEY_ID": "me", "AWS_REGION": "eu-west-1",
            "AWS_SECRET_ACCESS_KEY": "word",
        }  # fmt: skip
        make_bucket(self.s3, name)
        return Cache(f"s3://{name}/some/where", variables)


def make_bucket(url: str, name: str) -> None:
    """A bucket: what moto's server takes for a request that is signed."""
    subprocess.run(
        [
            "curl", "-fsS", "-X", "PUT", f"{url}/{name}", "-H", "Content-Type: application/xml", "-d",
            (
                "<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint>"
                "</CreateBucketConfiguration>"
            ),
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def bucket(cache: Cache) -> S3Store:
    """The objects of a cache in S3."""
    name = cache.name.removeprefix("s3://").partition("/")[0]
    return S3Store(
        name, endpoint=cache.variables["AWS_ENDPOINT_URL"], region="eu-west-1",
        access_key_id="me", secret_access_key="word", client_options={"allow_http": True},
    )  # fmt: skip


def objects(cache: Cache) -> list[str]:
    """Their paths."""
    return [item["path"] for batch in obstore.list(bucket(cache)) for item in batch]


@contextmanager
def moto() -> Iterator[str]:
    """An S3 server, on memory."""
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "moto.server"]
    process = subprocess.Popen(
        [*command, "-H", "127.0.0.1", "-p", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(rb"http://127\.0\.0\.1:\d+", line):
                yield found[0].decode()
                return
        pytest.fail("the S3 server did not start")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """Where caches come from."""
    with ExitStack() as stack:
        yield Shelf(str(tmp_path_factory.mktemp("caches")), stack)
