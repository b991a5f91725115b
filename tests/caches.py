"""Caches of the tests' own: a registry with a password, a layout, a bucket of moto's S3 server."""

import json
import os
import re
import subprocess  # the server is no part of the program
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import obstore
import pytest
from obstore.store import S3Store

from program import until
from registries import running

_ADDRESS = re.compile(rb"http://127\.0\.0\.1:\d+")
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
            self._s3 = self._stack.enter_context(moto(self._directory))
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
            "AWS_ENDPOINT_URL": self.s3, "AWS_ACCESS_KEY_ID": "me", "AWS_REGION": "us-east-1",
            "AWS_SECRET_ACCESS_KEY": "word",
        }  # fmt: skip
        make_bucket(self.s3, name)
        return Cache(f"s3://{name}/some/where", variables)


def make_bucket(url: str, name: str) -> None:
    """A bucket: whoever asks moto's server for one gets it."""
    request = urllib.request.Request(f"{url}/{name}", method="PUT")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def bucket(cache: Cache) -> S3Store:
    """The objects of a cache in S3."""
    name = cache.name.removeprefix("s3://").partition("/")[0]
    return S3Store(
        name, endpoint=cache.variables["AWS_ENDPOINT_URL"], region="us-east-1",
        access_key_id="me", secret_access_key="word", client_options={"allow_http": True},
    )  # fmt: skip


def objects(cache: Cache) -> list[str]:
    """Their paths."""
    return [item["path"] for batch in obstore.list(bucket(cache)) for item in batch]


@contextmanager
def moto(directory: str) -> Iterator[str]:
    """An S3 server, on memory; it logs to a file in `directory`."""
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "moto.server"]
    log = Path(directory, "moto.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "-H", "127.0.0.1", "-p", "0"], stdout=output, stderr=output
        )
    try:
        until(lambda: _ADDRESS.search(log.read_bytes()), "the S3 server answers", seconds=60)
        found = _ADDRESS.search(log.read_bytes())
        assert found is not None
        yield found[0].decode()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """Where caches come from."""
    with ExitStack() as stack:
        yield Shelf(str(tmp_path_factory.mktemp("caches")), stack)
