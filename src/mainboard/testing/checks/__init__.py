"""The checks, one module for each group; importing a module registers its checks."""
