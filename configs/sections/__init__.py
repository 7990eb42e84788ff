"""The sections of the configuration tree, one file each."""
