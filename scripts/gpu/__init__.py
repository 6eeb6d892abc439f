"""The parts of `check_gpu.py`; they need torch alone."""
