"""A small classifier that compares convolutions on moved pictures: data, networks, drawing."""
