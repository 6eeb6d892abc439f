"""Shapes of annotation tools become index masks, by one rule: see `drawing`."""
