"""What is printed or written for clusters: files to read, change and apply."""
