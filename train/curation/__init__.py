"""Cleaning datasets and editing heads by what a trained model sees."""
