"""Test edgekit with the lowest versions that pyproject allows: build, verify, run, inspect, report, route, serve.

    python -m benchmarks.lowest                    (uv on the PATH, or `pip install uv`)
    python -m benchmarks.lowest --python 3.12 --extras serve,large,sign

uv resolves every direct dependency to its lowest version (`--resolution lowest-direct`), and indirect ones to the
newest, in a temporary environment. Prints the versions and a line per step; exits with 1 if a step fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

SERVE = """
import json, os, signal, sys, threading, urllib.request
from pathlib import Path
from edgekit.serve.assembly import Plan, serve_bundle
def ask(url):
    try:
        with urllib.request.urlopen(url + "/v1/models", timeout=60) as answer:
            model = json.load(answer)["data"][0]["id"]
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}).encode()
        request = urllib.request.Request(url + "/v1/chat/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            answered.append(answer.status)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
answered = []
plan = Plan(*map(Path, sys.argv[1:]), port=0, history="none", threads=1)
serve_bundle(plan, lambda serving: threading.Thread(target=ask, args=(serving.url,), daemon=True).start())
assert answered == [200], answered
"""

POLICY = """
[privacy]
ceiling = "device"
"""


def steps(folder: Path) -> dict[str, list[str]]:
    """The steps to run, in order: arguments for the environment's interpreter."""
    model, bundle, fast = str(folder / "model"), str(folder / "bundle"), str(folder / "fast")
    edgekit = ["-m", "edgekit"]
    made = (
        "import sys; from pathlib import Path; from edgekit.testing import tiny_checkpoint as t; t(Path(sys.argv[1]))"
    )
    quick = ["--tokens", "128", "--window", "64", "--max-kld", "100", "--min-top1", "0"]
    key = str(folder / "key")
    write = (
        "import sys; from pathlib import Path\n"
        "from cryptography.hazmat.primitives.serialization import *\n"
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey as K\n"
        "k, p = K.generate(), Path(sys.argv[1])\n"
        "p.write_bytes(k.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())); p.chmod(0o600)\n"
        "Path(sys.argv[1] + '.pub').write_bytes(k.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))\n"
    )
    return {
        "help": [*edgekit, "build", "--help"],
        "doctor": [*edgekit, "doctor"],
        "a model": ["-c", made, model],
        "a key": ["-c", write, key],
        "build": [*edgekit, "build", model, "-o", bundle, "--sign", key],
        "build fast": [*edgekit, "build", model, "--recipe", "fast", "-o", fast],
        "build mixed": [*edgekit, "build", model, "--bits", "6", "-o", str(folder / "mixed")],
        "inspect": [*edgekit, "inspect", bundle, "--tensors"],
        "verify": [*edgekit, "verify", bundle, "--key", f"{key}.pub", "--record", *quick],
        "run": [*edgekit, "run", bundle, "The quick", "--max-new-tokens", "8", "--signals"],
        "bench": [*edgekit, "bench", fast, "--pp", "8", "--tg", "2", "--depth", "0", "--repetitions", "1", "--record"],
        "report": [*edgekit, "report", bundle, fast, "-o", str(folder / "report.html")],
        "targets": [*edgekit, "targets", "lint"],
        "route": [*edgekit, "route", "explain", bundle, "hi", "--policy", str(folder / "policy.toml")],
        "serve": ["-c", SERVE, bundle, str(folder / "policy.toml")],
    }


def uv() -> list[str]:
    """The command for uv."""
    if found := shutil.which("uv"):
        return [found]
    return [sys.executable, "-m", "uv"]


def call(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command outside of the checkout, without this environment's Python variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, timeout=900,
        env=kept | {"EDGEKIT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def install(folder: Path, python: str, extras: list[str], resolution: str) -> Path | None:
    """Create an environment with the versions and return its interpreter; on failure print uv's output, return None."""
    interpreter, pins = folder / "env" / "bin" / "python", folder / "pins.txt"
    wanted = [word for extra in extras for word in ("--extra", extra)]
    for command in (
        [*uv(), "venv", "--quiet", "--python", python, str(folder / "env")],
        [*uv(), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python", str(interpreter),
         "--resolution", resolution, *wanted, str(ROOT / "pyproject.toml"), "--output-file", str(pins)],
        [*uv(), "pip", "install", "--quiet", "--python", str(interpreter), "--requirement", str(pins)],
        [*uv(), "pip", "install", "--quiet", "--python", str(interpreter), "--no-deps", str(ROOT)],
    ):  # fmt: skip
        done = call(command, folder)
        if done.returncode:
            print(f"{' '.join(command)}\n{done.stderr}")
            return None
    print(pins.read_text(encoding="utf-8"))
    return interpreter


def main() -> int:
    """Install, run every step, and return 1 if one failed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--python", default="3.11")
    options.add_argument("--extras", default="serve,large,sign", help="separated by commas")
    options.add_argument("--resolution", default="lowest-direct", choices=["lowest-direct", "lowest", "highest"])
    given = options.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="lowest-") as name:
        folder = Path(name)
        (folder / "policy.toml").write_text(POLICY, encoding="utf-8")
        interpreter = install(folder, given.python, [e for e in given.extras.split(",") if e], given.resolution)
        if interpreter is None:
            return 1
        for step, arguments in steps(folder).items():
            done = call([str(interpreter), *arguments], folder)
            print(f"{'ok' if done.returncode == 0 else 'FAILED':6}  {step}", flush=True)
            if done.returncode:
                failed += 1
                print(done.stdout[-1000:] + done.stderr[-3000:])
    print(f"{failed} steps failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
