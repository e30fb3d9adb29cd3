"""Run in the cluster: a hub and a bucket with made-up models, from the sources that are mounted beside this file.

The image has `coordinator` without its laptop parts; those that are needed are found in this file's folder.
"""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path

HUB_PORT, BUCKET_PORT = 8080, 9000
MODEL_BYTES = 64 << 20
OBJECTS = {
    "ranker/config.json": b'{"model_type": "ranker"}\n',
    "ranker/model.bin": random.Random("ranker").randbytes(9 << 20),
}


def main() -> int:
    import coordinator

    here = Path(__file__).parent
    coordinator.__path__.append(str(here))
    sys.path.append(str(here))
    from bucket import S3  # type: ignore[import-not-found]  # beside this file in the cluster

    from coordinator.dev.origin.server import main as hub

    bucket = S3(OBJECTS, address=("0.0.0.0", BUCKET_PORT))
    threading.Thread(target=bucket.serve_forever, daemon=True).start()
    return hub(["--host", "0.0.0.0", "--port", str(HUB_PORT), "--size", str(MODEL_BYTES)])


if __name__ == "__main__":
    sys.exit(main())
