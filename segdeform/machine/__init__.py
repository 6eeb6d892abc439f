"""The machine a command runs on: devices, peer processes, signals, and the doctor's checks."""
