"""Compares the native kernels of a device with the definition computed in float64.

    python scripts/parity.py [--device cuda] [--small] [--json FILE]

The cases of `cuda_ops.parity`, every operator forward and backward, in every dtype; the table shows
the largest error of output and gradients, relative to the largest value. --small leaves out what
takes long under a memory checker. Needs torch and cuda_ops alone. Exit code 8: an error is too
large, or a kernel is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cuda_ops import library
from cuda_ops.parity import CASES, TOLERANCES, compare, tolerance


def main() -> int:
    """Prints a line a comparison; returns 8 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for case in (case for case in CASES if not (case.large and options.small)):
        for dtype in TOLERANCES:
            outcome = compare(case, dtype, options.device)
            row = {
                "operator": case.operator,
                "case": case.name,
                "dtype": str(dtype).removeprefix("torch."),
                "backend": outcome.backend,
                "tolerance": tolerance(dtype, options.device),
                "error": outcome.difference,
                "where": outcome.error or outcome.worst,
                "passed": outcome.good and library.has_kernel(case.operator, options.device),
            }
            rows.append(row)
            verdict = "ok    " if row["passed"] else "FAILED"
            print(f"{verdict} {row['operator']}, {row['case']}, {row['dtype']} ({row['backend']}): "
                  f"{row['error']:.1e} in {row['where']}", flush=True)  # fmt: skip
            if options.json:  # now, for it may be cut short
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    failed = sum(not row["passed"] for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} comparisons passed")
    return 8 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
