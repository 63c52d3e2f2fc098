#!/usr/bin/env python3
"""Run the steps of the Dockerfile in a new folder, where there is no Docker, and check the server.

Build arguments are environment variables, such as TORCH_INDEX. As root, the server runs as the
image's user, who can write into its volume and /tmp only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Build, then start, ask and stop the server."""
    with tempfile.TemporaryDirectory(prefix="esm2-features-container-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        settings, commands = build(folder)
        serve(folder, settings, commands)
    print("The steps of the Dockerfile work, and so does the server that they make.")


def build(folder: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Run what comes before the last FROM; read the settings behind it."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    work = folder / "build"
    work.mkdir()
    for part in ("opt", "bin"):
        (folder / part).mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    arguments: dict[str, str] = {}
    settings: dict[str, str] = {}
    commands: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        rest = re.sub(r"(?<![\w./])/(opt|data)\b", rf"{folder}/\1", rest)
        if word == "ARG":
            key, _, default = rest.partition("=")
            arguments[key] = os.environ.get(key, default)
        elif word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, work / target)
        elif word == "RUN":
            print("RUN", rest, flush=True)
            path = f"{folder}/bin:{os.environ['PATH']}"
            # An index that cannot be reached is left out at once: a local one may have the files.
            environment = {"PIP_RETRIES": "0", **os.environ, **arguments, "PATH": path}
            step = rest if os.getuid() == 0 else re.sub(r"-[og] \d+ ", "", rest)
            subprocess.run(["bash", "-euc", step], cwd=work, env=environment, check=True)
        elif word == "ENV":
            settings |= dict(re.findall(r"(\w+)=(\S+)", rest))
        elif word in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
            commands[word] = json.loads(rest[rest.index("[") :])
    return settings, commands


def copy(source: Path, target: Path) -> None:
    """Copy as COPY does: folders into the target itself, files into the folder."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def serve(folder: Path, settings: dict[str, str], commands: dict[str, list[str]]) -> None:
    """Start the server as its user; check its health, and that it ends when it is told to."""
    user = {"user": 10001, "group": 10001, "extra_groups": []} if os.getuid() == 0 else {}
    options = {"env": settings, "cwd": folder / "data", **user}
    program = shutil.which(commands["ENTRYPOINT"][0], path=settings["PATH"])
    python = shutil.which(commands["HEALTHCHECK"][0], path=settings["PATH"])
    if program is None or python is None:
        sys.exit("The programs of ENTRYPOINT and HEALTHCHECK are not on PATH.")
    try:
        subprocess.run([python, "-c", ""], check=True, **options)
    except PermissionError:
        print("User 10001 may not run this interpreter, so the server runs as you.", flush=True)
        options = {"env": settings, "cwd": folder / "data"}
    tokens = [program, "token", "new", "--tokens", f"{folder}/data/tokens.txt", "--name", "ci"]
    token = subprocess.run(tokens, check=True, stdout=subprocess.PIPE, text=True, **options).stdout
    server = subprocess.Popen([program, *commands["CMD"], "--model", "mini"], **options)
    try:
        health = [python, *commands["HEALTHCHECK"][1:]]
        for _ in range(120):
            if subprocess.run(health, stderr=subprocess.DEVNULL, **options).returncode == 0:
                break
            if server.poll() is not None:
                sys.exit(f"The server ended with {server.returncode}.")
            time.sleep(0.5)
        else:
            sys.exit("The server is not healthy after a minute.")
        ask = (
            "import sys, esm2_features as e; "
            "print(e.Engine('mini', endpoint='http://127.0.0.1:8000', token=sys.argv[1], "
            "cache=None).embed(['MKTAYIAKQR']).shape)"
        )
        subprocess.run([python, "-c", ask, token.strip()], check=True, **options)
    finally:
        server.send_signal(signal.SIGTERM)
        if server.wait(30) not in (0, -signal.SIGTERM):
            sys.exit(f"The server ended with {server.returncode} on SIGTERM.")


if __name__ == "__main__":
    main()
