"""What DropBlock is: checks, geometry and γ, keys, blocks, seeds, the oracle. Imports torch alone."""
