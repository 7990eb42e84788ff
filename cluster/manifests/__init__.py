"""Manifests that place a run on Kubernetes, Slurm or a cloud, the image that it runs in, and the
wheels for a machine without a network: plain functions to text, which a person reads first."""
