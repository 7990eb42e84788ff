"""The typed configuration tree, the recipes and the plan. Knows nothing of torch."""
