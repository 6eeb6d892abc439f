#!/usr/bin/env bash
# From nothing to masks: installs segdeform into .venv, generates pictures, trains a small network
# with deformable layers on them, evaluates it and predicts. Done steps are skipped.
#   bash scripts/demo.sh [FOLDER]       (default: demo/)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

folder=${1:-demo}
if [ -z "${SEGDEFORM_CUDA:-}" ]; then  # the CUDA half only where there is a GPU to run it
  if command -v nvidia-smi >/dev/null; then SEGDEFORM_CUDA=1; else SEGDEFORM_CUDA=0; fi
  export SEGDEFORM_CUDA
fi
make_environment ""
PATH=$PWD/.venv/bin:$PATH
began=$SECONDS

if [ ! -e "$folder/data/classes.json" ]; then
  say "Generating pictures: objects under rotation, scale, shear and bending"
fi
segdeform prepare shapes --output "$folder/data"

if [ ! -e "$folder/run/metrics.json" ]; then say "Training"; fi
segdeform train shapes --data "$folder/data" --output "$folder/run" --resume

if [ ! -e "$folder/evaluation/metrics.json" ]; then
  say "Evaluating"
  segdeform eval "$folder/run" --data "$folder/data" --output "$folder/evaluation"
  say "The same score of a classifier of single pixel colours"
  python scripts/colour_baseline.py shapes "$folder/data" | tee "$folder/evaluation/colours.txt"
fi
if [ ! -e "$folder/predictions/summary.json" ]; then
  say "Predicting"
  segdeform predict "$folder/run" "$folder/data/val/images" --output "$folder/predictions"
fi

say "Done in $((SECONDS - began)) s after the installation"
python - "$folder" <<'PYTHON'
import json
import pathlib
import sys

folder = pathlib.Path(sys.argv[1])
metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
print(f"val mIoU of the network    {metrics['miou']:.3f}")
print((folder / "evaluation" / "colours.txt").read_text().strip())
print(f"look at                    {folder / 'predictions' / 'overview.png'}")
print(f"overlays, masks            {folder / 'predictions'}")
PYTHON
