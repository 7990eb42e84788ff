"""A run's record in MLflow, and what is recorded for it of the code and the machines."""
