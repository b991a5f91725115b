"""Whether two directories are the same root file system, down to the nanosecond."""

import hashlib
import os
import stat


def described(root):
    """Everything there is to say of every file below a directory, by its path."""
    found, links = {}, {}
    pending = [""]
    while pending:
        prefix = pending.pop()
        for item in os.scandir(os.path.join(root, prefix)):
            path = os.path.join(prefix, item.name)
            found[path] = _described(item.path, path, links)
            if item.is_dir(follow_symlinks=False):
                pending.append(path)
    for paths in links.values():
        for path in paths:
            found[path]["linked to"] = sorted(paths)
    return found


def _described(whole, path, links):
    status = os.lstat(whole)
    kind = stat.S_IFMT(status.st_mode)
    said = {
        "kind": stat.filemode(status.st_mode)[0], "mode": oct(status.st_mode & 0o7777),
        "owner": (status.st_uid, status.st_gid), "time": status.st_mtime_ns,
    }  # fmt: skip
    names = os.listxattr(whole, follow_symlinks=False)
    said["xattrs"] = {name: os.getxattr(whole, name, follow_symlinks=False) for name in names}
    if kind == stat.S_IFLNK:
        said["leads to"] = os.readlink(whole)
    elif kind == stat.S_IFREG:
        with open(whole, "rb") as file:
            said["content"] = hashlib.file_digest(file, "sha256").hexdigest()
        said["size"] = status.st_size
    if kind != stat.S_IFDIR and status.st_nlink > 1:
        links.setdefault((status.st_dev, status.st_ino), []).append(path)
    return said


def differences(one, other):
    """What differs, a line for each file; [] if nothing does."""
    first, second = described(one), described(other)
    return [
        f"{path}: {first.get(path)} and {second.get(path)}"
        for path in sorted(first.keys() | second.keys(), key=os.fsencode)
        if first.get(path) != second.get(path)
    ]
