"""Measures how many training crops a second the loader makes, with the cache and without it.

python scripts/benchmark_loader.py cityscapes --data CITYSCAPES [--workers 1] [--steps 20]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from segdeform.config.loading import load_config
from segdeform.data import load_dataset
from segdeform.data.cache import with_cache
from segdeform.data.dataset import Dataset
from segdeform.data.loader import train_loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a shipped config or a file: crop, scale, batch size")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    config = load_config(options.config)
    plain = load_dataset(config.data.name, options.data, config.data.train_split)
    fast = with_cache(plain, print)

    def rate(dataset: Dataset) -> float:
        """Returns crops a second, the start of the workers not counted."""
        size = config.train.batch_size
        batches = train_loader(
            dataset,
            config.data,
            seed=0,
            first_step=0,
            steps=options.steps + 1,
            batch_size=size,
            workers=options.workers,
        )
        next(batches)
        begun = time.perf_counter()
        count = sum(len(images) for images, _ in batches)
        return count / (time.perf_counter() - begun)

    print(f"decoding: {rate(plain):.1f} crops/s")
    if fast.cache is None:
        print("no cache; segdeform prepare --cache writes it")
    else:
        print(f"cache: {rate(fast):.1f} crops/s")


if __name__ == "__main__":
    main()
