"""What deformable layers do: where they sample, how far they reach, how that differs by class."""
