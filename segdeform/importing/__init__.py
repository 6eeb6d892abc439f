"""Others' trained networks made model folders: `import_model.import_model` is the way in.

A network is recognised by the names of its tensors. They become ours, so that the network here
computes what it did there; what the names do not tell is read from the file's texts, or assumed and
said. No code of a file is run.
"""
