"""What the page lets people do to jobs, in the name of the client whose jobs they are."""

from msgspec.structs import replace

from obuilder.cluster.client import Client, Ref
from obuilder.cluster.credentials import Credentials, authority_of
from obuilder.cluster.engine import Engine
from obuilder.web.mirror import JobId


async def cancel(engine: Engine, credentials: Credentials, job: JobId) -> None:
    """A job is not wanted any more. ClusterError."""
    await _client(engine, credentials, job).cancel(Ref(job.pool, job.id), "on the web page")


async def rerun(engine: Engine, credentials: Credentials, job: JobId) -> JobId:
    """The same again: the new job. ClusterError."""
    made = await _client(engine, credentials, job).rerun(Ref(job.pool, job.id))
    return replace(job, id=made.id)


def _client(engine: Engine, credentials: Credentials, job: JobId) -> Client:
    """The job's client, that signs as the cluster does: workers take that for any client's signature."""
    signer = authority_of(credentials).signer
    return Client(engine, replace(credentials, name=job.client, seed=signer.seed))
