"""Run in the cluster: a hub, a bucket and a slow server with made-up models, from sources mounted beside this file.

The image has `coordinator` without its laptop parts; those that are needed are found in this file's folder.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
from pathlib import Path

HUB_PORT, BUCKET_PORT, SLOW_PORT = 8080, 9000, 8081
MODEL_BYTES = 64 << 20
SLOW_FILE, SLOW_BYTES, SLOW_RATE = "weights.bin", 96 << 20, 256 << 10
"""A file that is sent slowly, in bytes per second and connection: there is time to interrupt whoever fetches it."""
OBJECTS = {
    "ranker/config.json": b'{"model_type": "ranker"}\n',
    "ranker/model.bin": random.Random("ranker").randbytes(9 << 20),
}


def slow_content() -> bytes:
    return random.Random(SLOW_FILE).randbytes(SLOW_BYTES)


def main() -> int:
    import coordinator

    here = Path(__file__).parent
    coordinator.__path__.append(str(here))
    sys.path.append(str(here))
    from bucket import S3  # type: ignore[import-not-found]  # beside this file in the cluster

    from coordinator.dev.origin.server import Origin
    from coordinator.dev.origin.server import main as hub

    bucket = S3(OBJECTS, address=("0.0.0.0", BUCKET_PORT))
    threading.Thread(target=bucket.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SLOW_FILE).write_bytes(slow_content())
        with Origin(files=Path(folder), host="0.0.0.0", port=SLOW_PORT, rate_bytes_per_s=SLOW_RATE):
            return hub(["--host", "0.0.0.0", "--port", str(HUB_PORT), "--size", str(MODEL_BYTES)])


if __name__ == "__main__":
    sys.exit(main())
