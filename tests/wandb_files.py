"""What a run of W&B wrote, read back without a server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def pieces(folder: Path) -> list[Path]:
    """Return the folders of a run's offline pieces."""
    return sorted(folder.glob("wandb/offline-run-*"))


def records(piece: Path) -> list[dict[str, Any]]:
    """Return all records of a piece: ``wandb leet inspect --json``, without its second of start."""
    from wandb.util import get_core_path

    (file,) = piece.glob("run-*.wandb")
    command = [get_core_path(), "leet", "inspect", "--json", "--run-file", str(file), str(piece)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the logged rows."""
    return [record["history"]["item"] for record in found if record["type"] == "history"]


def values(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the configuration, with its later changes."""
    config: dict[str, Any] = {}
    for record in found:
        part = record.get("run", record).get("config", {})
        config |= part.get("update", {})
    return config


def would_upload(said: str) -> int:
    """Return how many pieces the command at the end of a line would upload."""
    command = said[said.index("wandb sync ") :].replace("wandb", f"{sys.executable} -m wandb", 1)
    environment = {name: v for name, v in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        ["sh", "-c", f"{command} --dry-run"],
        capture_output=True,
        check=True,
        text=True,
        env=environment,
    )
    found = re.search(r"Would sync (\d+) run", done.stderr)
    return int(found[1]) if found else 0
