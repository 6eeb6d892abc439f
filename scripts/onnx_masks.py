"""Labels pictures by an exported model.onnx with nothing but onnxruntime, numpy and PIL.

python scripts/onnx_masks.py exported/model.onnx a.jpg b.png    # writes a.mask.png, b.mask.png
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
for path in map(Path, sys.argv[2:]):
    image = np.asarray(Image.open(path).convert("RGB"))[None]  # uint8 [1, H, W, 3]
    labels = session.run(["labels"], {"image": image})[0][0]  # uint8 [H, W]
    Image.fromarray(labels).save(path.with_suffix(".mask.png"))
