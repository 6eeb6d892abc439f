"""Makes data sets ready: from archives, by download, by drawing; unpacked safely, verified."""
