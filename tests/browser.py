"""A browser without a screen: Chromium, spoken to by its own protocol over a pipe.

No driver and no port: the protocol's messages go over two file descriptors that only we hold.
"""

import base64
import itertools
import json
import os
import select
import signal
import subprocess  # the browser is a process
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from places import memory

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--mute-audio", "--hide-scrollbars",
    "--disable-features=Translate,OptimizationHints,MediaRouter", "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """A browser with one page. Leaving it ends the process and removes its profile."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting = b""
        self._session = ""
        self._directory = memory()
        self.faults: list[str] = []
        """What went wrong in pages: errors of scripts, and what the page's policy did not let them do."""

    def __enter__(self) -> Self:
        """Start it."""
        profile = self._directory.__enter__()
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # It reads descriptor 3 and writes 4, wherever ours are.
        program = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec chromium "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", program, "sh", *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "HOME": profile},
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        (target,) = [
            info["targetId"]
            for info in self._ask("Target.getTargets")["targetInfos"]
            if info["type"] == "page"
        ]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        os.close(self._out)
        os.close(self._in)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)  # it ends with its pipe
        with suppress(ProcessLookupError):  # and all it started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._directory.__exit__(None, None, None)

    # --- the protocol ----------------------------------------------------------------------------

    def _ask(self, method: str, **params: object) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(100)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._waiting:
            left = deadline - time.monotonic()
            assert select.select([self._in], [], [], max(left, 0))[0], "the browser is silent"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._waiting += data
        line, _, self._waiting = self._waiting.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._notice(message)
        return message

    def _notice(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.faults.append(str(params["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.faults.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    # --- what a person does ------------------------------------------------------------------------

    def go(self, url: str) -> None:
        """Load a page, to the end."""
        self._ask("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        found = self._ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 15) -> Any:
        """Wait until an expression is true: its value."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if value := self.js(expression):
                    return value
            except AssertionError as error:  # the page is being replaced
                if "context" not in str(error):
                    raise
            assert time.monotonic() < deadline, (expression, self.text()[:2000])
            time.sleep(0.02)

    def text(self) -> str:
        """What the page says."""
        return str(self.js("document.body.innerText"))

    def click(self, selector: str) -> None:
        """Click on the one thing there is."""
        self.js(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, value: str) -> None:
        """Type into a field."""
        self.js(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(value)}")

    def key(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for name in keys:
            text = {"text": name} if len(name) == 1 else {}
            self._ask("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
            self._ask("Input.dispatchKeyEvent", type="keyUp", key=name)

    def look(self, *, dark: bool = False, width: int = 1280, height: int = 800) -> None:
        """Be a machine whose owner likes it dark, or with a small screen."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._ask("Emulation.setEmulatedMedia", features=scheme)
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def picture(self, path: Path) -> None:
        """What is on the screen, as a PNG file."""
        data = self._ask("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def scripts(self, *, allowed: bool) -> None:
        """Whether pages may run scripts, from the next on."""
        self._ask("Emulation.setScriptExecutionDisabled", value=not allowed)

    def accessibility(self) -> list[str]:
        """The serious and critical faults that axe-core finds in the page."""
        import axe_core_python

        source = Path(axe_core_python.__file__).with_name("axe.min.js").read_text()
        # In a world of its own, the page's policy holds for the page alone.
        self.js(source + "; undefined")
        found = self.js(
            "axe.run({resultTypes: ['violations']}).then(found => found.violations"
            ".filter(one => ['serious', 'critical'].includes(one.impact))"
            ".map(one => one.id + ': ' + one.nodes.slice(0, 5).map(node =>"
            " node.html.slice(0, 200) + ' ' + node.any.map(any => any.message).join()).join(' | ')))"
        )
        return list(found)
