"""ONNX Runtime says nothing to its makers, and the process's environment stays as it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SEES = (
    "import os, {module}\n"
    "files = []\n"
    "for name in os.listdir('/proc/self/fd'):\n"
    "    try:\n"
    "        files.append(os.readlink(f'/proc/self/fd/{{name}}'))\n"
    "    except OSError:\n"
    "        pass\n"
    "print('ORT_DISABLE_TELEMETRY' in os.environ, sum('onnxruntime.db' in file for file in files))\n"
)


def seen(module: str, cache: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"HOME": cache}
    program = SEES.format(module=module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")
def test_no_telemetry(tmp_path):
    if seen("onnxruntime", str(tmp_path / "loud")) == "False 0":
        pytest.skip("this ONNX Runtime has no telemetry")
    assert seen("edgekit.run", str(tmp_path)) == "False 0"
