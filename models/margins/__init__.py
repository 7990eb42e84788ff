"""Margins: what is done to cosines before they become a loss."""
