"""The dataset on disk: manifest, index, names, writing, what is forgotten, checks."""
