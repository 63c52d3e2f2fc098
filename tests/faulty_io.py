"""Processes whose file system fails, by a library that is preloaded."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@functools.cache
def _library():
    """Compile the library of faults."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the library of faults is for Linux")
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc to compile the library of faults with")
    library = Path(tempfile.mkdtemp()) / "faulty_io.so"
    source = ROOT / "benchmarks" / "faulty_io.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def output_under(fault, program, *args, **options):
    """Run a program of Python whose files fail; what it prints."""
    variables = {f"FAULT_{name.upper()}": str(value) for name, value in options.items()}
    environment = os.environ | variables | {"FAULT": fault, "LD_PRELOAD": str(_library())}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-W", "always", "-c", program, *map(str, args)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr
