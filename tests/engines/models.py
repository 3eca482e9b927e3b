"""Small real models for engine tests."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "recipes/miniature/models/small"


def story_model() -> Path | None:
    """A tiny Llama that writes stories, where the shared folder is at hand."""
    folder = Path(os.environ.get("PSI_SHARED_DIR", ROOT.parent / "shared")) / "models/stories260K"
    return folder.resolve() if (folder / "config.json").is_file() else None
