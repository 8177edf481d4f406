"""Models of nnU-Net v2: read from its folders and zips, and written as such."""
