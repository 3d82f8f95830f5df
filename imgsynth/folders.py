"""Where things are kept that runs share."""

import os
from pathlib import Path


def default_folder() -> Path:
    """Return where caches are: ``$IMGSYNTH_CACHE``, or ``imgsynth`` in the user's cache folder."""
    if given := os.environ.get("IMGSYNTH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imgsynth"
