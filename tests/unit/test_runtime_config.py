"""What a runtime is told, read back."""

import msgspec
import pytest

from obuilder.errors import Unsupported
from obuilder.oci.runtime_config import Box, runtime_config
from obuilder.oci.seccomp import filter_for
from obuilder.values import IdMap, Policy, UnixUser


def config(**changes):
    options = {
        "root": "/r", "argv": ("a",), "cwd": "/", "user": UnixUser(1000, 100), "env": (("A", "1"),),
        "hostname": "builder", "idmap": IdMap(5000, 65536),
        "policy": Policy(), "host_network": False, "terminal": None, "init": "/i", "hosts": "/h",
        "resolv_conf": None, "ca_bundle": None, "binds": (), "open_files": (4096, 8192),
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}, "seccomp_bpf": None,
    }  # fmt: skip
    return msgspec.json.decode(runtime_config(Box(**{**options, **changes})))


def kinds(found):
    return {namespace["type"] for namespace in found["linux"]["namespaces"]}


def test_always_a_user_namespace():
    assert kinds(config()) == {"user", "pid", "ipc", "uts", "mount", "network"}
    assert kinds(config(host_network=True)) == {"user", "pid", "ipc", "uts", "mount"}
    assert config()["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 5000, "size": 65536}]


def test_a_single_id_is_the_steps_own():
    linux = config(idmap=IdMap(77, 1))["linux"]
    assert linux["uidMappings"] == [{"containerID": 1000, "hostID": 77, "size": 1}]
    assert linux["gidMappings"] == [{"containerID": 100, "hostID": 77, "size": 1}]


def test_powers():
    capabilities = config()["process"]["capabilities"]["bounding"]
    assert "CAP_SETUID" in capabilities
    assert not {"CAP_MKNOD", "CAP_NET_RAW", "CAP_SYS_ADMIN"} & set(capabilities)
    assert config()["process"]["noNewPrivileges"] is False
    assert config(policy=Policy(no_new_privileges=True))["process"]["noNewPrivileges"] is True


def test_files_are_limited_to_what_this_process_may_give():
    limit = config(open_files=(100, 200))["process"]["rlimits"][0]
    assert (limit["soft"], limit["hard"]) == (100, 200)


def test_certificates_do_not_replace_what_the_spec_says():
    env = config(ca_bundle="/ca", env=(("SSL_CERT_FILE", "/own"),))["process"]["env"]
    assert "SSL_CERT_FILE=/own" in env
    assert any(item.startswith("PIP_CERT=") for item in env)


@pytest.mark.parametrize("part", ["argv", "env", "cwd"])
def test_bytes_that_are_no_text_are_refused(part):
    odd = {"argv": ("\udcff",), "env": (("A", "\udcff"),), "cwd": "/\udcff"}[part]
    with pytest.raises(Unsupported, match="UTF-8") as refused:
        config(**{part: odd})
    assert "\\udcff" in refused.value.hint


def rules(name, **policy):
    found = filter_for("x86_64", **{"nested_userns": True, "fast_sync": True, **policy})
    return [rule for rule in found["syscalls"] if name in rule["names"]]


def test_syscalls():
    assert rules("read")
    assert not rules("bpf")
    assert not rules("io_uring_setup")
    assert [rule["errnoRet"] for rule in rules("fsync")] == [0]
    assert [rule["action"] for rule in rules("fsync", fast_sync=False)] == ["SCMP_ACT_ALLOW"]
    assert rules("unshare")
    assert not rules("unshare", nested_userns=False)
    families = {rule["args"][0]["value"] for rule in rules("socket")}
    assert {1, 2, 10, 16} <= families
    assert not {17, 38, 40} & families


def test_a_compiled_filter_goes_along_with_the_profile():
    found = config(seccomp_bpf=b"\x00\xff")
    assert found["annotations"] == {"run.oci.seccomp_bpf_data": "AP8="}
    assert found["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ERRNO"}
    assert config()["annotations"] == {}
