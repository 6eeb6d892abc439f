"""A small detector that compares ways of pooling: scenes, networks, training, scoring, drawing."""
