"""Drawn faces of made identities, for demos and tests where no real face may go."""
