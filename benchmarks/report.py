"""What a report weighs and how fast it opens: `python -m benchmarks.report evaluation/report`

Wants Chromium on the PATH (or in $CHROMIUM), and nothing else: it is opened from the disk and may not ask for more.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.chromium import COUNT_CONTEXTS, chromium, find, load_all


def measure(folder: Path) -> dict:
    """Its bytes, the seconds to open it (the best of three) and to load every model one by one, what it asked for."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
        page.size(1360, 900)
        page.call("Page.addScriptToEvaluateOnNewDocument", source=COUNT_CONTEXTS)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        seconds = [page.open(folder / "index.html") for _ in range(3)]
        page.size(700, 500)  # a few models at a time: without a GPU, drawing is what takes the time
        start = time.monotonic()
        models = load_all(page)
        return {
            "megabytes_without_videos": sum(f.stat().st_size for f in files if f.suffix not in (".mp4", ".webm")) / 1e6,
            "open_seconds": min(seconds),
            "models": models,
            "load_all_seconds": time.monotonic() - start,
            "webgl_contexts": page.js("window.contexts.size"),
            "requests": len(page.requests),
            "from_elsewhere": [url for url in page.requests if not url.startswith(("file:", "blob:", "data:"))],
            "errors": page.errors,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the report's folder")
    folder = parser.parse_args().folder
    if find() is None or not (folder / "index.html").is_file():
        what = (
            f"{folder} holds no index.html" if find() else "no Chromium on the PATH: install it, or set CHROMIUM=path"
        )
        print(f"error: {what}", file=sys.stderr)
        return 2
    print(json.dumps(measure(folder), indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
