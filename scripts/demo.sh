#!/usr/bin/env bash
# From nothing to masks: installs segdeform into .venv, generates pictures, trains a small network
# with deformable layers on them, evaluates it and predicts. Done steps are skipped.
#   bash scripts/demo.sh [FOLDER]       (default: demo/)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

folder=${1:-demo}
if command -v nvidia-smi >/dev/null; then  # the CUDA half only where there is a GPU to run it
  want_cuda_compiler=1
else
  export SEGDEFORM_CUDA=${SEGDEFORM_CUDA:-0}
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

model=$folder/run/model/manifest.json
if [ ! "$folder/evaluation/metrics.json" -nt "$model" ]; then
  say "Evaluating"
  segdeform eval "$folder/run" --data "$folder/data" --output "$folder/evaluation"
fi
if [ ! -e "$folder/colours.txt" ]; then
  say "The same score of a classifier of single pixel colours"
  python scripts/colour_baseline.py shapes "$folder/data" >"$folder/colours.tmp"
  mv "$folder/colours.tmp" "$folder/colours.txt"
fi
summary=$folder/predictions/summary.json
if [ ! "$summary" -nt "$model" ] || ! grep -q '"finished": true' "$summary"; then
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
print((folder / "colours.txt").read_text().strip())
print(f"scores, worst pictures     {folder / 'evaluation' / 'report.html'}")
print(f"look at                    {folder / 'predictions' / 'overview.png'}")
print(f"overlays, masks            {folder / 'predictions'}")
PYTHON
