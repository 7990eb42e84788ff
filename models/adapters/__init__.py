"""Small trained weights beside the fixed ones of a backbone."""
