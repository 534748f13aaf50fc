"""How fast the operators are on this machine, beside torch's own and beside the machine's limits."""
