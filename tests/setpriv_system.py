"""The system that the redirected sandbox is tested on: Linux, with setpriv in the place of sudo."""

import os

from obuilder.backends.sandboxes.accounts import Account, LinuxAccounts


class SetprivSystem:
    """See `users_redirected.System`. Home and prefix are in `place`."""

    def __init__(self, place: str) -> None:
        self.home, self.prefix = f"{place}/home", f"{place}/prefix"
        self.shared = (f"{place}/tmp",)
        self.accounts = LinuxAccounts(self.home)

    def command(
        self, account: Account, env: dict[str, str], cwd: str, argv: tuple[str, ...]
    ) -> list[str]:
        rights = [f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
        words = ["env", "-i", *(f"{key}={value}" for key, value in env.items())]
        return [
            "setpriv",
            *rights,
            "--",
            *words,
            "/bin/sh",
            "-c",
            'cd "$0" && exec "$@"',
            cwd,
            *argv,
        ]

    def temporary(self, account: Account) -> str | None:
        path = f"{self.home}/../temporary-{account.uid}"
        if not os.path.exists(path):
            os.mkdir(path, 0o700)
            os.chown(path, account.uid, account.gid)
        return os.path.realpath(path)

    def unlocked(self, path: str) -> list[str] | None:
        return None
