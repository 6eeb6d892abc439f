"""Raw pictures and masks become a data set: `prepare folder`."""
