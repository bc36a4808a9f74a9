"""Thirty seconds of Locust against a stage of its own: eight agents and an approval bot. Prints Locust's table.

Never add here: a user; they are in locustfile.py.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from pgleash.demo.stage import Stage

AGENTS = 8


def main() -> int:
    """Run it. Returns Locust's exit code: 0, or 1 when a request failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=30)
    given = parser.parse_args()
    with Stage(customers=10_000) as stage:
        tokens = [(f"agent-{number}", stage.token(subject=f"agent-{number}", lifetime=600)) for number in range(AGENTS)]
        where = f"host=localhost hostaddr=127.0.0.1 port={stage.port} dbname=shop"
        where += f" sslmode=verify-full sslrootcert={stage.certificates.ca}"
        environment = {
            **os.environ,
            "PGLEASH_DSN": where,
            "PGLEASH_AGENT_TOKENS": json.dumps(tokens),
            "PGLEASH_API": f"localhost:{stage.api_port}",
            "PGLEASH_CA": str(stage.certificates.ca),
            "PGLEASH_BOT_TOKEN": stage.token("bot", lifetime=600),
        }
        command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")), "--headless"]
        command += [
            "-u",
            str(AGENTS + 1),
            "-r",
            "20",
            "-t",
            f"{given.seconds}s",
            "--only-summary",
            "--exit-code-on-error",
            "1",
            "--stop-timeout",
            "3",
        ]
        return subprocess.run(command, env=environment, check=False, timeout=given.seconds + 90).returncode


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
